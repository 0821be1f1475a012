//! What others wrote, in messages of ours.

/// The first so many characters, without control characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn bounded_and_on_one_line() {
        assert_eq!(shown("a\r\nb\u{1b}[31mé\u{85}x", 100), "ab[31méx");
        assert_eq!(shown("ééé", 2), "éé");
        assert_eq!(shown("", 5), "");
    }
}
