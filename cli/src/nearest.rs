//! An unknown name is answered with the known one that is most like it.

/// The one of `known` most like `wanted`, if it is much like it or goes on where it ends.
pub(crate) fn nearest(wanted: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let distance = |name: &String| match name.strip_prefix(wanted) {
        Some(_) if wanted.len() > 1 => 1,
        _ => strsim::damerau_levenshtein(wanted, name),
    };
    let near = known.into_iter().map(|name| (distance(&name), name)).min()?;
    (near.0 <= 1 + wanted.len() / 4).then_some(near.1)
}

/// "; there is NAME", or nothing.
pub(crate) fn hint(wanted: &str, known: impl IntoIterator<Item = String>) -> String {
    nearest(wanted, known).map(|name| format!("; there is {name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_is_offered() {
        let known = || ["www-data", "web"].map(str::to_owned);
        assert_eq!(hint("www-dta", known()), "; there is www-data");
        assert_eq!(hint("www", known()), "; there is www-data");
        assert_eq!(hint("database", known()), "");
        assert_eq!(hint("web", []), "");
    }
}
