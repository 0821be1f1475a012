//! Text in columns.

/// Rows under a head, each column as wide as its widest cell; the last one is not padded.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<_> = head.iter().map(|name| width_of(name)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(width_of(cell));
        }
    }
    let mut text = String::new();
    line(&mut text, head, &widths);
    for row in rows {
        line(&mut text, row, &widths);
    }
    text
}

fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// A text as it may stand on a terminal: pods choose some of them.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().flat_map(|char| if char.is_control() { char.escape_default().collect() } else { vec![char] }).collect()
}

/// A row whose columns are so wide.
pub(crate) fn line<T: AsRef<str>>(text: &mut String, cells: &[T], widths: &[usize]) {
    let last = cells.len().saturating_sub(1);
    for (at, cell) in cells.iter().enumerate() {
        let cell = cell.as_ref();
        text.push_str(cell);
        if at < last {
            let width = widths.get(at).copied().unwrap_or_default();
            text.extend(std::iter::repeat_n(' ', width.saturating_sub(width_of(cell)) + 2));
        }
    }
    let end = text.trim_end_matches(' ').len();
    text.truncate(end);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(harmless("a\u{1b}[2Jb\tä"), "a\\u{1b}[2Jb\\tä");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["1".to_owned(), "ä".to_owned(), "x".to_owned()],
            vec!["1000".to_owned(), String::new(), "y".to_owned()],
        ];
        assert_eq!(table(&["SEQ", "A", "B"], &rows), "SEQ   A  B\n1     ä  x\n1000     y\n");
    }
}
