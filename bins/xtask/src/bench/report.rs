//! The report for people: a table, a page for `docs/`, a picture.

use std::fmt::Write as _;

use super::Row;
use crate::run::Cmd;

/// Rows for which more is better.
const MORE: [&str; 1] = ["warm_ratio"];

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
fn share(row: &Row) -> Option<f64> {
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

/// `target/bench/report.md`.
pub(super) fn report(machine: &Machine, rows: &[Row]) -> String {
    format!("{}\n{}", machine.listed(), table(rows))
}

const PAGE: &str = "\
# Benchmarks

<!-- Written by `cargo xtask bench --write`. -->

Figures of one run of `cargo xtask bench`. Value is the median of the rounds, min and max are the lowest and the highest round.

![How much of its bar each figure uses](benchmarks.svg)

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

## Figures

";

/// The page for `docs/`.
pub(super) fn page(machine: &Machine, rows: &[Row], quick: bool) -> String {
    let quick = if quick { "* `--quick`: few samples\n" } else { "" };
    format!("{PAGE}{}{quick}{METHOD}{}", machine.listed(), table(rows))
}

/// Every row with a bar as a line of its own, the bar in the middle; and the latencies.
pub(super) fn picture(rows: &[Row]) -> String {
    const LINE: usize = 22;
    let judged: Vec<(&Row, f64)> = rows.iter().filter_map(|row| Some((row, share(row)?))).collect();
    let height = judged.len() * LINE + 50;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"480\" y=\"20\" text-anchor=\"middle\">the bar</text>\n"
    );
    for (line, (row, share)) in judged.iter().enumerate() {
        let y = line * LINE + 30;
        // 260 pixels are the whole bar, 460 the whole width.
        let width = (share * 260.0).clamp(1.0, 460.0);
        let colour = if row.met == Some(true) { "#3b7a57" } else { "#b3423a" };
        let _ = writeln!(
            text,
            "<text x=\"210\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"220\" y=\"{y}\" width=\"{width:.0}\" height=\"16\" \
             fill=\"{colour}\"/><text x=\"690\" y=\"{}\">{} {}</text>",
            y + 13,
            row.id,
            y + 13,
            number(row.value),
            row.unit
        );
    }
    let _ = writeln!(
        text,
        "<line x1=\"480\" y1=\"26\" x2=\"480\" y2=\"{}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>\n</svg>",
        height - 16
    );
    text
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
    fn the_picture_has_a_line_for_each_bar_and_is_xml() {
        let text = picture(&[row("x", 7.0, Some(5.0), Some(false)), row("y", 1.0, None, None)]);
        assert!(text.contains("width=\"364\"") && text.contains("#b3423a"), "{text}");
        assert!(!text.contains(">y<"));
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
    }
}
