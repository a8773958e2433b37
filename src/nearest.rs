//! An unknown name is answered with the known one that is most like it.

/// The name most like `wanted`, if it is much like it or goes on where it ends.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let distance = |name: &str| match name.strip_prefix(wanted) {
        Some(_) if wanted.len() > 1 => 1,
        _ => strsim::damerau_levenshtein(wanted, name),
    };
    names
        .map(|name| (distance(name), name))
        .min()
        .filter(|&(distance, _)| distance <= 1 + wanted.len() / 4)
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_must_be_near() {
        let nearest = |wanted| nearest(wanted, ["web", "mail", "mail-archive"].into_iter());
        assert_eq!(nearest("wbe").as_deref(), Some("web"));
        assert_eq!(nearest("database"), None);
        assert_eq!(nearest("mail-ar").as_deref(), Some("mail-archive"));
        assert_eq!(nearest(""), None);
    }
}
