//! An unknown name is answered with the known one that is most like it.

use overspill::nearest;

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
