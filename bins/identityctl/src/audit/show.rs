//! `identityctl audit show`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use serde_json::{Map, Value};

use super::{Files, grant};
use crate::{
    args::{Filter, Show},
    table::{harmless, line, table},
};

/// The columns, and the width that they have as long as what is to come is not known.
const HEAD: [(&str, usize); 9] = [
    ("SEQ", 8),
    ("TIME", 27),
    ("VERDICT", 9),
    ("REASON", 10),
    ("POD", 32),
    ("BINDING", 24),
    ("IDENTITY", 24),
    ("SOURCE", 8),
    ("RESOURCE", 0),
];

/// So many rows are looked at for the widths of the columns.
const AHEAD: usize = 1000;

/// Prints records, in columns on a terminal, with tabs into a pipe, or as they are.
pub(super) struct Printer {
    json: bool,
    terminal: bool,
    widths: Option<Vec<usize>>,
    ahead: Vec<Vec<String>>,
}

impl Printer {
    pub(super) fn new(json: bool) -> Self {
        Self { json, terminal: io::stdout().is_terminal(), widths: None, ahead: Vec::new() }
    }

    /// Prints a record, or keeps it until the widths are known. False when nobody reads any more.
    pub(super) fn print(&mut self, record: &Record<'_>) -> anyhow::Result<bool> {
        if self.json {
            return written(record.text);
        }
        let cells = record.cells();
        if !self.terminal {
            return written((cells.join("\t") + "\n").as_bytes());
        }
        if let Some(widths) = &self.widths {
            let mut text = String::new();
            line(&mut text, &cells, widths);
            return written(text.as_bytes());
        }
        self.ahead.push(cells);
        if self.ahead.len() < AHEAD { Ok(true) } else { self.flush() }
    }

    /// Prints what was kept.
    pub(super) fn flush(&mut self) -> anyhow::Result<bool> {
        if self.json || !self.terminal || self.widths.is_some() {
            return Ok(true);
        }
        let rows = std::mem::take(&mut self.ahead);
        let text = table(&HEAD.map(|(name, _)| name), &rows);
        let widest = |at: usize, least: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(least);
        self.widths =
            Some(HEAD.iter().enumerate().map(|(at, (name, least))| widest(at, *least).max(name.len())).collect());
        written(text.as_bytes())
    }
}

fn written(bytes: &[u8]) -> anyhow::Result<bool> {
    match io::stdout().write_all(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::new(error).context("standard output")),
    }
}

/// A line of a journal.
pub(super) struct Record<'a> {
    text: &'a [u8],
    fields: Map<String, Value>,
}

impl<'a> Record<'a> {
    /// `None` when it is none.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok().map(|fields| Self { text, fields })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    /// Whether it is asked for.
    pub(super) fn is(&self, filter: &Filter) -> bool {
        let is =
            |name: &str, wanted: &Option<String>| wanted.as_deref().is_none_or(|wanted| self.get(name) == Some(wanted));
        let pod = filter.pod.as_ref().is_none_or(|(namespace, name)| {
            self.get("pod_namespace") == Some(namespace.as_str()) && self.get("pod") == Some(name.as_str())
        });
        let pod = pod || self.is_grant() && filter.pod.as_ref().is_some_and(|pod| grant::is_for(&self.fields, pod));
        (filter.all || self.get("kind") == Some("token") || self.is_grant())
            && pod
            && is("binding", &filter.binding)
            && is("identity", &filter.identity)
            && is("verdict", &filter.verdict)
            && is("uti", &filter.uti)
    }

    fn is_grant(&self) -> bool {
        self.get("kind") == Some("grant")
    }

    fn cells(&self) -> Vec<String> {
        let seq = self.fields.get("seq").map(ToString::to_string).unwrap_or_default();
        let get = |name: &str| harmless(self.get(name).unwrap_or("-"));
        if self.is_grant() {
            return grant::cells(&self.fields, seq);
        }
        if self.get("kind") != Some("token") {
            // What the journal says about itself: its kind, and the rest as it stands.
            let known = ["seq", "time", "kind", "hash", "journal"];
            let rest = self.fields.iter().filter(|(name, _)| !known.contains(&name.as_str()));
            let rest: Vec<_> = rest.map(|(name, value)| format!("{name}={value}")).collect();
            let mut cells = vec![seq, get("time"), format!("({})", get("kind"))];
            cells.extend(std::iter::repeat_n("-".to_owned(), 5));
            cells.push(harmless(&rest.join(" ")));
            return cells;
        }
        let pod = match (self.get("pod_namespace"), self.get("pod")) {
            (Some(namespace), Some(pod)) => harmless(&format!("{namespace}/{pod}")),
            _ => get("address"),
        };
        let mut cells = vec![seq, get("time"), get("verdict"), get("reason"), pod];
        cells.extend(["binding", "identity", "source", "resource"].map(get));
        cells
    }
}

pub(super) fn run(args: &Show) -> anyhow::Result<ExitCode> {
    let files = Files::find(&args.files)?;
    let mut printer = Printer::new(args.json);
    files.lines(
        &mut printer,
        |_, _| {},
        |printer, line| match Record::parse(line).filter(|record| record.is(&args.filter)) {
            Some(record) => printer.print(&record),
            None => Ok(true),
        },
    )?;
    printer.flush()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = r#"{"seq":7,"kind":"token","time":"2027-01-15T08:00:00.000000Z","verdict":"issued","reason":"issued","address":"10.42.0.7","pod_namespace":"demo","pod":"app","binding":"demo/b","identity":"demo/i","resource":"api://\u001b[2J","source":"cache","uti":"u","hash":"00"}"#;
    const STOP: &str = r#"{"seq":8,"kind":"stop","time":"2027-01-15T08:00:01.000000Z","hash":"00"}"#;

    #[test]
    fn a_record_in_cells() {
        let cells = Record::parse(TOKEN.as_bytes()).unwrap().cells();
        let expected = [
            "7",
            "2027-01-15T08:00:00.000000Z",
            "issued",
            "issued",
            "demo/app",
            "demo/b",
            "demo/i",
            "cache",
            "api://\\u{1b}[2J",
        ];
        assert_eq!(cells, expected);
        let cells = Record::parse(STOP.as_bytes()).unwrap().cells();
        assert_eq!((&*cells[2], cells.len()), ("(stop)", HEAD.len()));
        assert!(Record::parse(b"{\"seq\":").is_none());
    }

    #[test]
    fn filters() {
        let token = Record::parse(TOKEN.as_bytes()).unwrap();
        let stop = Record::parse(STOP.as_bytes()).unwrap();
        let wanted = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            (token.is(&filter), stop.is(&filter))
        };
        assert_eq!(wanted(|_| {}), (true, false));
        assert_eq!(wanted(|filter| filter.all = true), (true, true));
        assert_eq!(wanted(|filter| filter.pod = Some(("demo".into(), "app".into()))), (true, false));
        assert_eq!(wanted(|filter| filter.pod = Some(("other".into(), "app".into()))), (false, false));
        assert_eq!(wanted(|filter| filter.binding = Some("demo/b".into())), (true, false));
        assert_eq!(wanted(|filter| filter.identity = Some("demo/x".into())), (false, false));
        assert_eq!(wanted(|filter| filter.verdict = Some("denied".into())), (false, false));
        assert_eq!(wanted(|filter| filter.uti = Some("u".into())), (true, false));
    }
}
