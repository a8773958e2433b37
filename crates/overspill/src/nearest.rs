//! An unknown name is answered with the known one that is most like it.

/// The name most like `wanted`, if it is much like it or goes on where it ends; of equals the
/// first by the alphabet.
pub fn nearest<N: AsRef<str> + Ord>(wanted: &str, known: impl IntoIterator<Item = N>) -> Option<N> {
    let distance = |name: &str| match name.strip_prefix(wanted) {
        Some(_) if wanted.len() > 1 => 1,
        _ => strsim::damerau_levenshtein(wanted, name),
    };
    let near = known.into_iter().map(|name| (distance(name.as_ref()), name)).min()?;
    (near.0 <= 1 + wanted.len() / 5).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_must_be_near() {
        let nearest = |wanted| nearest(wanted, ["web", "mail", "mail-archive"]);
        assert_eq!(nearest("wbe"), Some("web"));
        assert_eq!(nearest("database"), None);
        assert_eq!(nearest("wait"), None, "half of it is wrong");
        assert_eq!(nearest("mail-ar"), Some("mail-archive"));
        assert_eq!(nearest(""), None);
    }
}
