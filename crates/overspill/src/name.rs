//! The names of services.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::member::Families;

/// The name of a service: 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a
/// letter or digit; `NAME:PORT` for a further port of a server, whose port it then is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(pub(crate) String);

impl Name {
    /// The name of this server's service on one of its ports.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        Self(format!("{}:{port}", self.without_port()))
    }

    /// The name of the server, and of the service on its first port.
    #[must_use]
    pub fn without_port(&self) -> Self {
        Self(self.0.split(':').next().unwrap_or_default().to_owned())
    }

    /// The name of its twin for one family: `NAME-ipv4` or `NAME-ipv6`, with the same port.
    ///
    /// IPv4 and IPv6-only sockets on a port can't be in one service; where a server has both, those
    /// of the second family make up the twin.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`]: it gets too long.
    pub fn with_family(&self, families: Families) -> Result<Self> {
        let (base, port) = self.0.split_at(self.0.find(':').unwrap_or(self.0.len()));
        let family = if families.ipv6 { "ipv6" } else { "ipv4" };
        format!("{base}-{family}{port}").parse()
    }

    /// The port that it tells, if it does.
    pub(crate) fn port(&self) -> Option<u16> {
        self.0.split_once(':')?.1.parse().ok()
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (base, port) =
            text.split_once(':').map_or((text, None), |(base, port)| (base, Some(port)));
        let letters = base.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        let first = base.starts_with(|c: char| c.is_ascii_alphanumeric());
        // A port as `with_port` writes it: no sign, no leading zero.
        let port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|n| n.to_string() == port));
        if letters && first && port && base.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::BadName { name: text.to_owned() })
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_their_rules() {
        let long = "a".repeat(64);
        for good in ["web", "0", "a.b_c-d", "web:80", &long, &format!("{long}:65535")] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(65);
        for bad in
            ["", "-a", ".a", "_a", "a b", "a/b", "ä", &longer, "web:", "web:x", "web:080", "a:1:2"]
        {
            assert!(matches!(bad.parse::<Name>(), Err(Error::BadName { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_family_is_put_before_the_port() {
        let twin = |name: &str, families| name.parse::<Name>().unwrap().with_family(families);
        assert_eq!(twin("web", Families::IPV6).unwrap().as_str(), "web-ipv6");
        assert_eq!(twin("web:80", Families::IPV4).unwrap().as_str(), "web-ipv4:80");
        assert!(twin(&"a".repeat(64), Families::IPV6).is_err());
    }

    #[test]
    fn a_port_is_put_behind_the_name_once() {
        let name: Name = "web".parse().unwrap();
        assert_eq!(name.with_port(80).with_port(81).as_str(), "web:81");
        assert_eq!(name.with_port(80).without_port(), name);
        assert_eq!(name.without_port(), name);
    }
}
