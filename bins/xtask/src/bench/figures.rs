//! The plots of the page, from the rows of a run. A figure whose rows are not there is left out.

use super::{
    Row,
    plot::{Axis, Bar, Chart, Line, bars, charts},
    report::{bar, number, share},
};

/// A plot of the page.
pub(super) struct Figure {
    /// File name without its end.
    pub(super) name: &'static str,
    /// What it shows.
    pub(super) caption: &'static str,
    pub(super) svg: String,
}

/// All for which there are rows.
pub(super) fn figures(rows: &[Row]) -> Vec<Figure> {
    let figure = |name, caption, svg: Option<String>| svg.map(|svg| Figure { name, caption, svg });
    [
        figure("bars", "How much of its bar each figure uses; a bar that ends left of the line is met", uses(rows)),
        figure("latency", "Latency, open loop: the node (solid) and the bare server (dashed)", latency(rows)),
        figure(
            "profile",
            "Where the processor time of a warm token goes, and of the bare server's answer",
            profile(rows),
        ),
        figure("growth", "What grows with the pods of a node and with their identities", growth(rows)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn find<'a>(rows: &'a [Row], id: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.id == id)
}

fn uses(rows: &[Row]) -> Option<String> {
    let judged: Vec<Bar> = rows
        .iter()
        .filter_map(|row| {
            let colour = if row.met == Some(true) { "#3b7a57" } else { "#b3423a" };
            let label = format!("{} {} ({})", number(row.value), row.unit, bar(row));
            Some(Bar { name: row.id.clone(), label, parts: vec![(share(row)?, colour)] })
        })
        .collect();
    (!judged.is_empty()).then(|| bars(&judged, 1.5, Some((1.0, "the bar"))))
}

const RATES: [u32; 3] = [100, 1000, 5000];

fn latency(rows: &[Row]) -> Option<String> {
    const QUANTILES: [&str; 4] = ["p50", "p90", "p99", "p999"];
    let line = |prefix: &str, rate: u32| -> Option<Vec<(f64, [f64; 3])>> {
        let rows = QUANTILES.iter().map(|quantile| find(rows, &format!("{prefix}{quantile}_us_{rate}")));
        (0..).map(f64::from).zip(rows).map(|(at, row)| row.map(|row| (at, [row.value, row.min, row.max]))).collect()
    };
    let mut all = Vec::new();
    for rate in RATES {
        let (node, bare) = (line("", rate)?, line("bare_", rate)?);
        let values: Vec<f64> = [&node, &bare].into_iter().flatten().flat_map(|(_, values)| *values).collect();
        all.push(Chart {
            title: format!("{rate} requests/s"),
            x: Axis::steps("percentile", &["50", "90", "99", "99.9"]),
            y: Axis::logarithmic("µs", values),
            lines: vec![
                Line { name: "identity-node".into(), points: node, dashed: false },
                Line { name: "bare hyper".into(), points: bare, dashed: true },
            ],
        });
    }
    Some(charts(&all, 3))
}

/// The parts of a request's processor time: id, of the node, of the bare server.
pub(super) fn parts(rows: &[Row]) -> Vec<(String, String, f64, f64)> {
    const NODE: &str = "profile_us_";
    let value = |id: String| find(rows, &id).map_or(0.0, |row| row.value);
    let part = |row: &Row, id: &str| {
        let what = row.what.split_once(": ").map_or(row.what.as_str(), |(_, what)| what).to_owned();
        (id.to_owned(), what, value(format!("{NODE}{id}")), value(format!("profile_bare_us_{id}")))
    };
    rows.iter().filter_map(|row| Some(part(row, row.id.strip_prefix(NODE)?))).collect()
}

fn profile(rows: &[Row]) -> Option<String> {
    let parts = parts(rows);
    let most = parts.iter().map(|(.., node, bare)| node.max(*bare)).fold(0.0, f64::max);
    let rows: Vec<Bar> = parts
        .iter()
        .flat_map(|(id, _, node, bare)| {
            let bar = |name: String, value: f64, colour| Bar {
                name,
                label: format!("{value:.2} µs"),
                parts: vec![(value, colour)],
            };
            let of_bare = (*bare > 0.0).then(|| bar("bare server".to_owned(), *bare, "#b9c4cc"));
            [Some(bar(id.clone(), *node, "#1f5f8b")), of_bare]
        })
        .flatten()
        .collect();
    (!rows.is_empty()).then(|| bars(&rows, most * 1.05, None))
}

const SERIES: [(&str, &str); 2] =
    [("pods", "pods of the node (20 identities)"), ("identities", "identities (250 pods)")];
const GROWS: [(&str, &str, &str); 4] = [
    ("rss_mib", "Memory", "MiB"),
    ("cpu_us", "Processor time for a token, 1,000/s", "µs"),
    ("p99_us", "99th percentile, 1,000/s", "µs"),
    ("cold_overhead_ms", "Cold overhead", "ms"),
];

fn growth(rows: &[Row]) -> Option<String> {
    let points = |prefix: &str| {
        let mut points: Vec<(f64, [f64; 3])> = rows
            .iter()
            .filter_map(|row| Some((row.id.strip_prefix(prefix)?.parse().ok()?, [row.value, row.min, row.max])))
            .collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        (points.len() > 1).then_some(points)
    };
    let chart = |title: &str, x: &str, unit: &str, points: Vec<(f64, [f64; 3])>| Chart {
        title: title.to_owned(),
        x: Axis::logarithmic(x, points.iter().map(|(at, _)| *at).collect::<Vec<_>>()),
        y: Axis::linear(unit, points.iter().flat_map(|(_, values)| *values)),
        lines: vec![Line { name: String::new(), points, dashed: false }],
    };
    let mut all = Vec::new();
    for (id, title, unit) in GROWS {
        for (series, x) in SERIES {
            all.extend(points(&format!("{id}_{series}_")).map(|points| chart(title, x, unit, points)));
        }
    }
    let lookup = [("lookup_ns_", "pods of the node"), ("lookup_ns_identities_", "identities of each of 250 pods")];
    for (prefix, x) in lookup {
        all.extend(points(prefix).map(|points| chart("Address to decision", x, "ns", points)));
    }
    (!all.is_empty()).then(|| charts(&all, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, value: f64) -> Row {
        Row {
            id: id.into(),
            what: format!("of it: the {id}"),
            value,
            unit: "µs".into(),
            min: value,
            max: value,
            bar: None,
            met: None,
        }
    }

    #[test]
    fn a_figure_needs_its_rows() {
        assert!(figures(&[row("cold_upstream_ms", 1.0)]).is_empty());
        let judged = Row { bar: Some(2.0), met: Some(true), ..row("x", 1.0) };
        let names = |rows: &[Row]| figures(rows).iter().map(|figure| figure.name).collect::<Vec<_>>();
        assert_eq!(names(&[judged]), ["bars"]);
        let grown = [row("rss_mib_pods_10", 3.0), row("rss_mib_pods_1000", 9.0), row("lookup_ns_ratio", 1.0)];
        assert_eq!(names(&grown), ["growth"]);
        assert_eq!(names(&[row("profile_us_send", 9.0), row("profile_bare_us_send", 8.0)]), ["profile"]);
        let rates: Vec<Row> = ["", "bare_"]
            .iter()
            .flat_map(|prefix| ["p50", "p90", "p99", "p999"].map(|quantile| format!("{prefix}{quantile}_us")))
            .flat_map(|id| RATES.map(|rate| row(&format!("{id}_{rate}"), 7.0)))
            .collect();
        assert_eq!(names(&rates), ["latency"]);
        assert!(names(&rates[1..]).is_empty(), "half a line is none");
    }

    #[test]
    fn parts_have_both_sides() {
        let rows = [row("profile_us_send", 9.0), row("profile_us_record", 2.0), row("profile_bare_us_send", 8.0)];
        let both: Vec<_> = parts(&rows).into_iter().collect();
        assert_eq!(
            both,
            [
                ("send".into(), "the profile_us_send".into(), 9.0, 8.0),
                ("record".into(), "the profile_us_record".into(), 2.0, 0.0)
            ]
        );
    }
}
