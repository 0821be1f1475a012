//! The tables: on the terminal, and as the published page.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};

use super::{
    Row,
    cells::{self, Cell, Verdict},
    limits::{LIMITS, Shows},
};
use crate::{files, paths};

/// The tables' headings and columns.
const TABLES: [(&str, &[Cell]); 3] = [
    ("Which identity", &[Cell::NoId, Cell::ClientId, Cell::ResourceId, Cell::ObjectId, Cell::WrongId, Cell::Several]),
    ("Whether and when", &[Cell::NoIdentity, Cell::Closed, Cell::Assigned, Cell::Vault, Cell::Default]),
    ("Upstream trouble", &[Cell::ThrottledOnce, Cell::Throttled, Cell::Slow]),
];

/// Times are shown as the first of these (in milliseconds) that they are below, so that two runs print the same page.
const STEPS: [u64; 7] = [100, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// Where a run leaves the page.
pub fn made() -> PathBuf {
    paths::target().join("sdk/compatibility.md")
}

fn published() -> PathBuf {
    paths::root().join("docs/compatibility.md")
}

/// Puts the last run's page into `docs/`.
///
/// # Errors
/// Of the file system.
pub fn publish() -> anyhow::Result<()> {
    files::replace(&published(), &files::read(&made())?)
}

/// Whether the published page says what the last run found. Times, counts and versions may differ.
///
/// # Errors
/// Naming the rows that differ.
pub fn compare() -> anyhow::Result<()> {
    let (page, new) = (files::read(&published())?, files::read(&made())?);
    let differing = differences(&page, &new);
    ensure!(
        differing.is_empty(),
        "docs/compatibility.md is not what this run found (`cargo xtask test sdk --write` writes it anew):\n{}",
        differing.join("\n")
    );
    Ok(())
}

/// Writes the page of a run below the target directory.
///
/// # Errors
/// Of the file system.
pub fn write(text: &str) -> anyhow::Result<PathBuf> {
    let path = made();
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    files::replace(&path, text)?;
    Ok(path)
}

/// The tables alone.
pub fn tables(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (heading, columns) in TABLES {
        let mut table = vec![vec!["client".to_owned()]];
        table[0].extend(columns.iter().map(|cell| cell.title().to_owned()));
        for row in rows {
            let mut line = vec![row.client.title().to_owned()];
            line.extend(columns.iter().map(|cell| row.results.get(cell).map_or_else(|| "not run".to_owned(), shown)));
            table.push(line);
        }
        lines.extend([format!("## {heading}"), String::new()]);
        lines.extend(aligned(&table));
        lines.push(String::new());
    }
    lines
}

/// What the numbers in brackets mean.
pub fn notes() -> Vec<String> {
    reasons().iter().enumerate().map(|(index, reason)| format!("{}. {reason}", index + 1)).collect()
}

/// What failed, a line each.
pub fn failures(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        for (cell, result) in &row.results {
            if let Verdict::Fail(why) = &result.verdict {
                lines.push(format!("{}, {}: {why}", row.client.title(), cell.title()));
            }
        }
    }
    lines
}

/// The whole page.
pub fn page(rows: &[Row]) -> String {
    let mut page = format!("{HEAD}\n");
    for line in tables(rows) {
        let _ = writeln!(page, "{line}");
    }
    page.push_str("## Limits of the clients\n\nThe numbers in brackets. `–`: the client cannot be asked so.\n\n");
    for line in notes() {
        let _ = writeln!(page, "{line}");
    }
    page.push_str("\n## What is asked\n\n");
    for cell in Cell::ALL {
        let _ = writeln!(page, "- **{}**: {}", cell.title(), cell.story());
    }
    page.push_str("\n## Versions\n\n");
    for row in rows {
        let _ = writeln!(page, "- {} {}", row.client.title(), row.version);
    }
    let _ = write!(page, "\n{HINTS}");
    page
}

const HEAD: &str = "# Compatibility\n\n\
<!-- Written by `cargo xtask test sdk --write`. -->\n\n\
Microsoft's own clients, unmodified, each in a pod of its own against the product, through real netfilter. A cell says\n\
whether the client got what it should, how long that took from the application's question to its answer, and how many HTTP\n\
requests left the pod for it. The client's process is loaded and has asked once before. A refusal passes only if it comes\n\
within 2 s, is not retried, and the application reads the endpoint's own words in the client's error.\n";

const HINTS: &str = "## Hints\n\n\
- Python's asynchronous `ManagedIdentityCredential` sends the names in `identity_config` as they are: a resource id is\n  \
`identity_config={\"msi_res_id\": …}` there, and `identity_config={\"resource_id\": …}` in the synchronous one, which ignores any other name.\n\
- Both JavaScript clients keep a resource's token for all credentials of the process until it expires, whatever changes meanwhile.\n\
- Rust's client says \"The requested identity has not been assigned to this resource\" in place of the words of any 400.\n\
- `DefaultAzureCredential` sends a probe first, which is the second request of its column.\n";

fn reasons() -> Vec<&'static str> {
    let mut reasons = Vec::new();
    for limit in LIMITS {
        if !reasons.contains(&limit.reason) {
            reasons.push(limit.reason);
        }
    }
    reasons
}

fn shown(result: &cells::Result) -> String {
    let took = u64::try_from(result.took.as_millis()).unwrap_or(u64::MAX);
    let below = STEPS
        .iter()
        .find(|step| took < **step)
        .map_or_else(|| ">60 s".to_owned(), |step| format!("<{} s", Duration::from_millis(*step).as_secs_f64()));
    let measured = format!("{below}, {}", result.requests);
    match &result.verdict {
        Verdict::Pass => format!("pass, {measured}"),
        Verdict::Fail(_) => format!("FAIL, {measured}"),
        Verdict::Limit(index) => {
            let limit = &LIMITS[*index];
            let number = reasons().iter().position(|reason| *reason == limit.reason).unwrap_or_default() + 1;
            match limit.shows {
                Shows::Unsupported => format!("– [{number}]"),
                Shows::Error(_) => format!("[{number}], {measured}"),
            }
        }
    }
}

fn aligned(table: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
    let mut lines: Vec<String> = table
        .iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            format!("| {} |", cells.join(" | "))
        })
        .collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    lines.insert(1, format!("| {} |", rule.join(" | ")));
    lines
}

/// Rows of the tables with verdicts only.
fn verdicts(page: &str) -> Vec<String> {
    page.lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            let cells: Vec<&str> = cells.map(|cell| cell.split(',').next().unwrap_or_default().trim()).collect();
            cells.join(" | ")
        })
        .collect()
}

fn differences(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (verdicts(old), verdicts(new));
    let gone = old.iter().filter(|row| !new.contains(row)).map(|row| format!("- {row}"));
    let come = new.iter().filter(|row| !old.contains(row)).map(|row| format!("+ {row}"));
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::clients::Client;

    fn row(client: Client, verdict: &Verdict, took: u64) -> Row {
        let result = |verdict: &Verdict| cells::Result {
            verdict: verdict.clone(),
            took: Duration::from_millis(took),
            requests: 1,
        };
        let mut results: std::collections::BTreeMap<_, _> =
            Cell::ALL.iter().map(|cell| (*cell, result(&Verdict::Pass))).collect();
        results.insert(Cell::Throttled, result(verdict));
        Row { client, version: "1.0".to_owned(), results }
    }

    #[test]
    fn every_cell_is_in_one_table() {
        let mut cells: Vec<Cell> = TABLES.iter().flat_map(|(_, columns)| columns.iter().copied()).collect();
        cells.sort();
        assert_eq!(cells, Cell::ALL);
    }

    #[test]
    fn a_page_differs_by_verdicts_and_not_by_times() {
        let limit =
            LIMITS.iter().position(|limit| limit.client == Client::Curl && limit.cell == Cell::Throttled).unwrap();
        let of =
            |verdict: &Verdict, took| page(&[row(Client::Curl, verdict, took), row(Client::GoAdal, &Verdict::Pass, 5)]);
        let page = of(&Verdict::Limit(limit), 60);
        assert!(page.contains("<0.1 s, 1"), "{page}");
        assert_eq!(differences(&page, &of(&Verdict::Limit(limit), 4000)), [""; 0]);
        let other = differences(&page, &of(&Verdict::Fail("why".into()), 60));
        assert_eq!(other.len(), 2, "{other:?}");
        assert!(other[0].starts_with("- curl | pass | [") && other[1] == "+ curl | pass | FAIL | pass", "{other:?}");
    }

    #[test]
    fn failures_are_told_in_words() {
        let rows = [row(Client::Curl, &Verdict::Fail("it was late".into()), 1)];
        assert_eq!(failures(&rows), ["curl, upstream 429 for a while: it was late"]);
    }
}
