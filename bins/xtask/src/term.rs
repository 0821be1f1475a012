//! What a person reads: short lines, aligned tables, colours only on a terminal.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
};

use crate::paths;

/// A line on standard output. A closed pipe is no error.
pub fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line that begins a section.
pub fn heading(text: impl Display) {
    line(format_args!("\n{}", paint("1", &text.to_string())));
}

/// A step: what is being done, or was.
pub fn step(text: impl Display) {
    line(format_args!("  {text}"));
}

/// What failed, on standard error.
pub fn failure(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "xtask: {text}");
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && paths::variable("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Rows of cells, printed with every column as wide as its widest cell.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints it, each row indented by two spaces.
    pub fn print(&self) {
        for row in self.lines() {
            step(row);
        }
    }

    /// The aligned lines.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        self.rows
            .iter()
            .map(|row| {
                let cells: Vec<String> =
                    row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
                cells.join("  ").trim_end().to_owned()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(["tier", "passed"]);
        table.row(["unit".to_owned(), "12".to_owned()]);
        table.row(["a longer one".to_owned(), "3".to_owned()]);
        assert_eq!(table.lines(), ["tier          passed", "unit          12", "a longer one  3"]);
    }
}
