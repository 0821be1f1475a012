//! The report for people: tables, what missed its bar and where the time goes, a page for `docs/`.

use std::fmt::Write as _;

use super::{
    Row,
    figures::{self, Figure},
};
use crate::run::Cmd;

/// Rows for which more is better.
const MORE: [&str; 2] = ["warm_ratio", "journal_warm_ratio"];

/// A figure in as many digits as mean something.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 0.1 || size == 0.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// Whether the bar is met, in a word.
pub(super) fn met(row: &Row) -> &'static str {
    match row.met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    }
}

/// The bar with its direction.
pub(super) fn bar(row: &Row) -> String {
    let sign = if is_more_better(row) { "≥" } else { "≤" };
    row.bar.map(|bar| format!("{sign} {}", number(bar))).unwrap_or_default()
}

fn is_more_better(row: &Row) -> bool {
    MORE.contains(&row.id.as_str())
}

/// How much of its bar a figure uses: at most 1 is good.
pub(super) fn share(row: &Row) -> Option<f64> {
    let bar = row.bar.filter(|bar| *bar > 0.0)?;
    Some(if is_more_better(row) { bar / row.value } else { row.value / bar })
}

/// The share as a picture: ten blocks are all of the bar, more than ten too much.
fn plot(row: &Row) -> String {
    let Some(share) = share(row) else { return String::new() };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 … 20")]
    let blocks = (share * 10.0).round().clamp(0.0, 20.0) as usize;
    format!("{}{} {:.0} %", "█".repeat(blocks), "░".repeat(10_usize.saturating_sub(blocks)), share * 100.0)
}

/// All rows as a table of Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text =
        "| id | what | value | unit | min | max | bar | met |\n|---|---|---:|---|---:|---:|---:|---|\n".to_owned();
    for row in rows {
        let met = format!("{} {}", met(row), plot(row));
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
            row.id,
            row.what,
            number(row.value),
            row.unit,
            number(row.min),
            number(row.max),
            bar(row),
            met.trim()
        );
    }
    text
}

/// What it ran on.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    lines: Vec<String>,
}

impl Machine {
    /// Looks around; the load is that of now, so ask before the run.
    pub(super) fn here() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let rust = Cmd::new("rustc").arg("--version").text().unwrap_or_default();
        Self {
            lines: vec![
                format!("{processors} × {}", field(&file("/proc/cpuinfo"), "model name")),
                format!("memory {}", field(&file("/proc/meminfo"), "MemTotal")),
                format!("Linux {}", file("/proc/sys/kernel/osrelease").trim()),
                rust.trim().to_owned(),
                format!("load before the run: {} (above 0.5, others were using the machine)", Self::load()),
            ],
        }
    }

    fn load() -> String {
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
    }

    fn listed(&self) -> String {
        format!("* {}\n", self.lines.join("\n* "))
    }
}

/// What missed its bar, by how much, and where the time goes.
fn missed(rows: &[Row]) -> String {
    let judged = rows.iter().filter(|row| row.met.is_some()).count();
    let missed: Vec<&Row> = rows.iter().filter(|row| row.met == Some(false)).collect();
    if missed.is_empty() {
        return format!("None of the {judged} bars is missed.\n");
    }
    let mut text = format!("{} of {judged} bars are missed:\n\n", missed.len());
    for row in missed {
        let by = share(row).map_or_else(String::new, |share| format!(", missed by {:.0} %", (share - 1.0) * 100.0));
        let _ = writeln!(
            text,
            "* `{}`: {} {} (from {} to {}), the bar is {}{by}. {}",
            row.id,
            number(row.value),
            row.unit,
            number(row.min),
            number(row.max),
            bar(row),
            because(row, rows)
        );
    }
    text
}

/// What is known about why a figure is what it is.
fn because(row: &Row, rows: &[Row]) -> String {
    if row.id == "lookup_ns_100000" {
        return beside(rows).unwrap_or_else(|| "(What it is made of was not measured in this run.)".to_owned());
    }
    if !(row.id.starts_with("warm_") || row.id.starts_with("cpu_") || row.id.starts_with("p99_")) {
        return String::new();
    }
    let mut parts = figures::parts(rows);
    if parts.is_empty() {
        return "(There is no profile in this run.)".to_owned();
    }
    let more: f64 = parts.iter().map(|(.., node, bare)| node - bare).sum();
    parts.sort_by(|one, other| (other.2 - other.3).total_cmp(&(one.2 - one.3)));
    let named = parts.iter().take(4).map(|(_, what, node, bare)| format!("{what} {:.1} µs", node - bare));
    format!(
        "A token costs {more:.1} µs of processor time more than the bare server's answer; most of it is {}.",
        named.collect::<Vec<_>>().join(", ")
    )
}

/// What is measured of a look-up among many pods, beside a look-up among few and a plain array. What overlaps is compared with
/// what overlaps, and what waits for the answer before with what waits.
fn beside(rows: &[Row]) -> Option<String> {
    let value = |id: &str| rows.iter().find(|row| row.id == id).map(|row| row.value);
    let pair = |id: &str| {
        let (few, many) = (value(&format!("{id}_10"))?, value(&format!("{id}_100000"))?);
        Some(format!("{} ns (among 10: {})", number(many), number(few)))
    };
    Some(format!(
        "With 10 pods the same code takes {} ns. Of both, to find who has the address is {}. Nothing here keeps the \
         processor from beginning a request before it is done with the one before. Where it cannot, because the answer says \
         which address is next, a decision takes {}; to own and let go the same pods and assignments from a plain array, with nothing looked up \
         or decided, takes {} there, and {} where it can begin early.",
        number(value("lookup_ns_10")?),
        pair("lookup_find_ns")?,
        pair("lookup_chained_ns")?,
        pair("lookup_chained_floor_ns")?,
        pair("lookup_floor_ns")?,
    ))
}

/// The profile as a table.
fn profile(rows: &[Row]) -> String {
    let parts = figures::parts(rows);
    if parts.is_empty() {
        return "There is no profile in this run.\n".to_owned();
    }
    let all: f64 = parts.iter().map(|(.., node, _)| node).sum();
    let all_bare: f64 = parts.iter().map(|(.., bare)| bare).sum();
    let mut text =
        "| part | what | µs | share | bare server, µs | more, µs |\n|---|---|---:|---:|---:|---:|\n".to_owned();
    for (id, what, node, bare) in &parts {
        let _ = writeln!(
            text,
            "| `{id}` | {what} | {node:.2} | {:.1} % | {bare:.2} | {:.2} |",
            node / all * 100.0,
            node - bare
        );
    }
    let _ = writeln!(text, "| | all | {all:.2} | 100 % | {all_bare:.2} | {:.2} |", all - all_bare);
    text
}

/// `target/bench/report.md`.
pub(super) fn report(machine: &Machine, rows: &[Row]) -> String {
    let (missed, profile) = (missed(rows), profile(rows));
    format!("{}\n{missed}\n{profile}\n{}", machine.listed(), table(rows))
}

const PAGE: &str = "\
# Benchmarks

<!-- Written by `cargo xtask bench --write`. -->

Figures of one run of `cargo xtask bench`. Value is the median of the rounds, min and max are the lowest and the highest round.

## Machine

";

const METHOD: &str = "
## Method

* **What is measured** is the release build of the two daemons. The node daemon runs in a network namespace that is the node,
  with its netfilter rules, a bridge and forwarding; requests come from the addresses of 250 pods through the redirect. It
  writes its log, with an audit record for each token, as JSON into a file on disk.
* **The bare server** is hyper answering every request with as many bytes as a token's answer has, with the same number of
  threads and the same allocator, without redirect, log or decision. It takes turns with the product in one run; a ratio is
  that of one turn to the next.
* **The load generator** is a process of its own. It and the servers share the processors, so absolute figures are those of this
  machine with a load generator on it. The time it takes itself is on both sides of a ratio and pulls it towards 1; the
  rows of processor time are the server's alone (`/proc/PID/task/*/schedstat`) and do not have that flaw.
* **Closed loop**: each connection asks again when it is answered. **Open loop**: requests are due at fixed instants, and their
  time counts from then, whatever became of those before (no coordinated omission). Percentiles are of HDR histograms with
  three digits.
* **Upstream** answers at once over plain HTTP on kept connections. No TLS handshake and no signature is in any figure.
* **Kubernetes**: etcd, kube-apiserver and kube-controller-manager as released, on the same machine.
* Figures of the engine (`lookup_*`, `publish_*`) are criterion's; min and max are the bounds of its 95 % confidence interval.
* **The profile** (`cargo xtask bench profile`) is of the same release builds under the closed loop: `perf` samples their
  stacks 997 times a second, and a sample is laid to the innermost function that names a part. Microseconds are the
  part's share of the processor time of a request in that run. What a part costs in the kernel is the kernel's line, not the
  part's, but for the audit record, which has its own.
* **Growth** is measured with the objects on an API server and one node for each point; the daemon is started for it.
";

/// The page for `docs/`.
pub(super) fn page(machine: &Machine, rows: &[Row], figures: &[Figure], quick: bool) -> String {
    let quick = if quick { "* `--quick`: few samples\n" } else { "" };
    let shown = |name: &str| {
        let figure = figures.iter().find(|figure| figure.name == name);
        figure.map_or_else(String::new, |figure| format!("![{}](benchmarks/{name}.svg)\n\n", figure.caption))
    };
    format!(
        "{PAGE}{}{quick}\n## Bars\n\n{}{}\n## Latency\n\n{}## Where the time goes\n\n{}{}\n## Growth\n\n{}{METHOD}\n## All \
         figures\n\n{}",
        machine.listed(),
        shown("bars"),
        missed(rows),
        shown("latency"),
        shown("profile"),
        profile(rows),
        shown("growth"),
        table(&rows.iter().filter(|row| !row.id.starts_with("profile_")).cloned().collect::<Vec<_>>())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, value: f64, bar: Option<f64>, met: Option<bool>) -> Row {
        Row { id: id.into(), what: "w".into(), value, unit: "s".into(), min: value, max: value, bar, met }
    }

    #[test]
    fn the_table_says_what_missed_its_bar() {
        let rows = [
            row("x", 7.0, Some(5.0), Some(false)),
            row("warm_ratio", 1.7, Some(0.85), Some(true)),
            row("plain", 0.0123, None, None),
        ];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| `x` | w | 7.00 | s | 7.00 | 7.00 | ≤ 5.00 | NO ██████████████ 140 % |",
                "| `warm_ratio` | w | 1.70 | s | 1.70 | 1.70 | ≥ 0.85 | yes █████░░░░░ 50 % |",
                "| `plain` | w | 0.0123 | s | 0.0123 | 0.0123 |  |  |",
            ]
        );
    }

    #[test]
    fn what_missed_its_bar_is_said_with_its_reason() {
        let part = |id: &str, what: &str, value| Row { what: format!("of it: {what}"), ..row(id, value, None, None) };
        let rows = [
            row("warm_ratio", 0.68, Some(0.85), Some(false)),
            row("rss_mib_250", 13.0, Some(12.0), Some(false)),
            row("lookup_ns_10", 40.0, Some(100.0), Some(true)),
            part("profile_us_send", "sending", 9.0),
            part("profile_us_record", "the record", 3.0),
            part("profile_bare_us_send", "sending", 7.5),
        ];
        assert_eq!(
            missed(&rows),
            "2 of 3 bars are missed:\n\n\
             * `warm_ratio`: 0.68 s (from 0.68 to 0.68), the bar is ≥ 0.85, missed by 25 %. A token costs 4.5 µs of processor \
             time more than the bare server's answer; most of it is the record 3.0 µs, sending 1.5 µs.\n\
             * `rss_mib_250`: 13.00 s (from 13.00 to 13.00), the bar is ≤ 12.00, missed by 8 %. \n"
        );
        let lookup = [
            row("lookup_ns_10", 44.0, Some(100.0), Some(true)),
            row("lookup_ns_100000", 151.0, Some(100.0), Some(false)),
            row("lookup_find_ns_10", 12.0, None, None),
            row("lookup_find_ns_100000", 55.0, None, None),
            row("lookup_floor_ns_10", 20.0, None, None),
            row("lookup_floor_ns_100000", 25.0, None, None),
            row("lookup_chained_ns_10", 48.0, None, None),
            row("lookup_chained_ns_100000", 240.0, None, None),
            row("lookup_chained_floor_ns_10", 21.0, None, None),
            row("lookup_chained_floor_ns_100000", 130.0, None, None),
        ];
        let said = missed(&lookup);
        for part in [
            "missed by 51 %. With 10 pods the same code takes 44.00 ns. ",
            "to find who has the address is 55.00 ns (among 10: 12.00). ",
            "a decision takes 240 ns (among 10: 48.00); ",
            "takes 130 ns (among 10: 21.00) there, and 25.00 ns (among 10: 20.00) where it can begin early.",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        for without in 2..lookup.len() {
            let mut rows = lookup.to_vec();
            rows.remove(without);
            let said = missed(&rows);
            assert!(said.contains("(What it is made of was not measured in this run.)"), "{said}");
        }
        assert_eq!(missed(&rows[2..3]), "None of the 1 bars is missed.\n");
        assert!(profile(&rows).contains("| `send` | sending | 9.00 | 75.0 % | 7.50 | 1.50 |"), "{}", profile(&rows));
    }
}
