//! `identityctl audit verify`.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::Context as _;
use identity_broker::audit::journal::{
    VerifyingKey,
    verify::{Options, Report, Verifier},
};
use serde::Serialize;

use super::Files;
use crate::{args::Verify, say};

pub(super) fn run(args: &Verify) -> anyhow::Result<ExitCode> {
    let report = report(args)?;
    let text = if args.json {
        serde_json::to_string_pretty(&Said::from(&report))? + "\n"
    } else if io::stdout().is_terminal() {
        in_words(&report)
    } else {
        report.findings.iter().fold(String::new(), |text, finding| text + &finding.to_string() + "\n")
    };
    say(&text)?;
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn report(args: &Verify) -> anyhow::Result<Report> {
    let files = Files::find(&args.files)?;
    let key = |path: &std::path::PathBuf| {
        let named = || format!("--public-key {}", path.display());
        let pem = std::fs::read(path).with_context(named)?;
        VerifyingKey::from_pem(&pem).with_context(named)
    };
    let options = Options {
        keys: args.public_key.iter().map(key).collect::<anyhow::Result<_>>()?,
        heads: args.head.clone(),
        newest: args.max_age.map(|age| (age, identity_process::now())),
        complete: files.complete,
    };
    let mut verifier = Verifier::new(options);
    files.lines(
        &mut verifier,
        |verifier, path| verifier.begin(path.display().to_string()),
        |verifier, line| {
            verifier.line(line);
            Ok(true)
        },
    )?;
    Ok(verifier.finish())
}

#[derive(Serialize)]
struct Said<'a> {
    whole: bool,
    #[serde(flatten)]
    report: &'a Report,
    /// What cannot be proven.
    limits: Vec<String>,
}

impl<'a> From<&'a Report> for Said<'a> {
    fn from(report: &'a Report) -> Self {
        Self { whole: report.is_whole(), report, limits: report.limits() }
    }
}

fn in_words(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    let known = |text: &Option<String>| crate::table::harmless(text.as_deref().unwrap_or("unknown"));
    row("journal", &known(&report.journal));
    row("node", &known(&report.node));
    row("files", &report.files.to_string());
    let (first, last) = (report.first_seq.unwrap_or_default(), report.last_seq.unwrap_or_default());
    let grants = if report.grant_records > 0 { format!(", {} of grants", report.grant_records) } else { String::new() };
    row("records", &format!("{} ({first} to {last}), {} of tokens{grants}", report.records, report.token_records));
    if let Some(head) = report.head {
        row("head", &head.to_string());
    }
    let unknown = match report.unknown_checkpoints {
        0 => String::new(),
        unknown => format!(", {unknown} of keys that were not given"),
    };
    row("checkpoints", &format!("{} verified{unknown}", report.checkpoints));
    row("proven", &report.proven_through.map_or("nothing".to_owned(), |seq| format!("up to record {seq}")));
    for (head, lines) in [
        ("Findings", report.findings.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("Worth knowing", report.notes.clone()),
        ("Not proven", report.limits()),
    ] {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{head}:");
            for line in lines {
                let _ = writeln!(text, "  {}", crate::table::harmless(&line));
            }
        }
    }
    if report.more_findings > 0 {
        let _ = writeln!(text, "  and {} more findings", report.more_findings);
    }
    text.push_str(if report.is_whole() { "\nwhole\n" } else { "\nNOT WHOLE\n" });
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser as _;
    use identity_broker::audit::journal::{
        chain::Head,
        encode::{Encoder, Note},
        file_name,
    };

    use super::*;
    use crate::args::{Args, Audit, Command};

    fn journal(directory: &Path) {
        let time = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let mut encoder = Encoder::new("7f0c", "node-1", Head::default(), None);
        for file in 1..=2 {
            let mut bytes = Vec::new();
            encoder.note(time, &Note::File { file, oldest: 1 }, &mut bytes);
            encoder.token(b"\"kind\":\"token\",\"verdict\":\"issued\"", &mut bytes);
            encoder.token(b"\"kind\":\"token\",\"verdict\":\"denied\"", &mut bytes);
            fs::write(directory.join(file_name(file)), bytes).unwrap();
        }
    }

    fn verified(words: &[&str]) -> anyhow::Result<Report> {
        let words = ["identityctl", "audit", "verify"].iter().chain(words);
        let Command::Audit(Audit::Verify(args)) = Args::parse_from(words).command else { unreachable!() };
        report(&args)
    }

    #[test]
    fn a_directory_and_its_files_in_any_order() {
        let directory = tempfile::tempdir().unwrap();
        journal(directory.path());
        let path = directory.path().to_str().unwrap();
        let whole = verified(&[path]).unwrap();
        assert!(whole.is_whole(), "{:?}", whole.findings);
        insta::assert_snapshot!(in_words(&whole));
        let (first, second) = (format!("{path}/{}", file_name(1)), format!("{path}/{}", file_name(2)));
        assert!(verified(&[&second, &first]).unwrap().is_whole(), "their names say the order");
        assert!(verified(&[&second]).unwrap().is_whole(), "a part is no finding");
        let head = whole.head.unwrap().to_string();
        assert_eq!(verified(&[path, "--head", &head]).unwrap().proven_through, Some(6));

        fs::remove_file(&first).unwrap();
        let missing = verified(&[path]).unwrap();
        assert_eq!(missing.findings[0].text, "file 1 is missing");
        assert!(in_words(&missing).ends_with("NOT WHOLE\n"));
        assert!(serde_json::to_string(&Said::from(&missing)).unwrap().starts_with("{\"whole\":false,"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        assert!(format!("{:#}", verified(&[path]).unwrap_err()).contains("there is no journal here"));
        let error = format!("{:#}", verified(&[&format!("{path}/absent")]).unwrap_err());
        assert!(error.contains("absent"), "{error}");
        journal(directory.path());
        let error =
            format!("{:#}", verified(&[path, "--public-key", &format!("{path}/journal-00000001.jsonl")]).unwrap_err());
        assert!(error.contains("--public-key") && error.contains("openssl pkey"), "{error}");
    }
}
