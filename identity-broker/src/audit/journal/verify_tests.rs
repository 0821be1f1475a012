//! Every change to a journal is found, or named among what cannot be.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{
    chain::{Hash, Head, Line},
    encode::{Encoder, Note},
    key::SigningKey,
    verify::{Finding, Kind, Options, Report, verify},
};

/// RFC 8032, section 7.1, test 1.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

fn key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_pem(KEY.as_bytes()).unwrap())
}

fn time(second: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::try_from(second).unwrap()).unwrap()
}

/// A journal: `tokens` records of tokens in each file, a checkpoint after every `every` of them (0: none).
fn journal(tokens: &[u64], every: u64) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new("id", "node", Head::default(), (every > 0).then(key));
    let mut count = 0;
    (1_u64..)
        .zip(tokens)
        .map(|(file, tokens)| {
            let mut bytes = Vec::new();
            encoder.note(time(count), &Note::File { file, oldest: 1 }, &mut bytes);
            for _ in 0..*tokens {
                count += 1;
                // Each seventh is of another kind, as there may be more of.
                let kind = if count % 7 == 0 { "grant" } else { "token" };
                let body = format!("\"kind\":\"{kind}\",\"resource\":\"r{count}\"");
                encoder.token(body.as_bytes(), &mut bytes);
                if every > 0 && count % every == 0 {
                    encoder.checkpoint(time(count), &mut bytes);
                }
            }
            bytes
        })
        .collect()
}

fn lines(files: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let of = |(file, bytes): (usize, &Vec<u8>)| {
        bytes.split_inclusive(|byte| *byte == b'\n').map(|line| (file, line.to_vec())).collect::<Vec<_>>()
    };
    files.iter().enumerate().flat_map(of).collect()
}

fn joined(lines: &[(usize, Vec<u8>)], files: usize) -> Vec<Vec<u8>> {
    let mut joined = vec![Vec::new(); files];
    for (file, line) in lines {
        joined[*file].extend_from_slice(line);
    }
    joined
}

fn report(files: &[Vec<u8>], options: Options) -> Report {
    let names: Vec<_> = (1..=files.len()).map(|number| format!("file-{number}")).collect();
    verify(names.iter().map(String::as_str).zip(files.iter().map(Vec::as_slice)), options)
}

fn keyed() -> Options {
    Options { keys: vec![key().verifying()], ..Options::default() }
}

fn kinds(report: &Report) -> Vec<Kind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn a_whole_journal_and_what_it_proves() {
    let files = journal(&[3, 4], 0);
    let whole = report(&files, Options::default());
    assert!(whole.is_whole(), "{:?}", whole.findings);
    assert_eq!((whole.records, whole.token_records, whole.files), (9, 6, 2));
    assert_eq!((whole.first_seq, whole.last_seq, whole.proven_through), (Some(1), Some(9), None));
    assert!(whole.limits()[0].contains("nothing here is signed or anchored"));

    let files = journal(&[3, 4], 3);
    let signed = report(&files, keyed());
    assert!(signed.is_whole(), "{:?}", signed.findings);
    assert_eq!((signed.checkpoints, signed.last_seq, signed.proven_through), (2, Some(11), Some(10)));
    assert!(signed.limits()[0].contains("the records after 10"), "{:?}", signed.limits());
    // Without the key they are bound together, no more.
    assert_eq!(report(&files, Options::default()).unknown_checkpoints, 2);

    let anchored = report(&files, Options { heads: vec![signed.head.unwrap()], ..Options::default() });
    assert_eq!((anchored.proven_through, anchored.limits()), (Some(11), vec![]));
}

#[test]
fn later_files_alone_are_verified_and_what_is_not_there_is_said() {
    let files = journal(&[3, 4, 2], 0);
    let later = report(&files[1..], Options::default());
    assert!(later.is_whole(), "{:?}", later.findings);
    assert_eq!(later.limits()[1], "the records 1 to 4 are not in these files");
    let complete = report(&files[1..], Options { complete: true, ..Options::default() });
    assert_eq!(complete.findings[0].text, "file 1 is missing");
    let gap = report(&[files[0].clone(), files[2].clone()], Options::default());
    assert_eq!(gap.findings[0].text, "records 5 to 9 are missing");
}

#[test]
fn findings_name_the_place() {
    let files = journal(&[3], 0);
    let mut all = lines(&files);
    all[2].1[30] ^= 1;
    let changed = report(&joined(&all, 1), Options::default());
    assert_eq!(kinds(&changed), [Kind::Altered], "one change is one finding");
    let Finding { file, line, seq, .. } = &changed.findings[0];
    assert_eq!((file.as_str(), *line, *seq), ("file-1", 3, Some(3)));

    let mut all = lines(&files);
    all.remove(1);
    let removed = report(&joined(&all, 1), Options::default());
    assert_eq!(removed.findings[0].to_string(), "file-1:2: record 2 is missing");

    let emptied = report(&[files[0].clone(), Vec::new()], Options::default());
    assert_eq!(emptied.findings[0].to_string(), "file-2: the file is empty");
}

#[test]
fn checkpoints_must_be_there_and_new_enough() {
    assert_eq!(kinds(&report(&journal(&[3], 0), keyed())), [Kind::NoCheckpoint]);
    let files = journal(&[4], 2);
    let age = |age| Options { newest: Some((SignedDuration::from_secs(age), time(60))), ..keyed() };
    assert!(report(&files, age(56)).is_whole());
    assert_eq!(kinds(&report(&files, age(55))), [Kind::NoCheckpoint]);
}

#[test]
fn what_the_daemon_says_is_wrong_is_a_finding() {
    let mut encoder = Encoder::new("id", "node", Head::default(), None);
    let mut bytes = Vec::new();
    encoder.note(time(0), &Note::File { file: 1, oldest: 1 }, &mut bytes);
    encoder.note(time(1), &Note::Start { version: "1" }, &mut bytes);
    encoder.note(time(1), &Note::Repair { file: 1, bytes: 3, torn: b"{\"s\xff" }, &mut bytes);
    encoder.note(time(1), &Note::Clock { before: time(2) }, &mut bytes);
    encoder.note(time(1), &Note::Late { from: 1, to: 2 }, &mut bytes);
    encoder.note(time(1), &Note::Lost { records: 3, since: time(0), error: "full" }, &mut bytes);
    encoder.note(time(1), &Note::Damage { file: 1, text: "bad" }, &mut bytes);
    encoder.note(time(1), &Note::Stop, &mut bytes);
    let report = report(&[bytes], Options::default());
    assert_eq!(kinds(&report), [Kind::Reported, Kind::Reported]);
    assert_eq!(report.notes.len(), 3);
}

/// All that follows is hashed anew, as somebody would who has the files and no key.
fn rehashed(lines: &[(usize, Vec<u8>)], from: usize, mut head: Head) -> Vec<(usize, Vec<u8>)> {
    let mut forged = lines[..from].to_vec();
    for (file, line) in &lines[from..] {
        let text = String::from_utf8(line.clone()).unwrap();
        let fields = &text[text.find(',').unwrap() + 1..text.rfind(",\"hash\"").unwrap()];
        let fields = match fields.find("\"follows\":\"") {
            Some(at) => format!("{}\"follows\":\"{}\"", &fields[..at], head.hash),
            None => fields.to_owned(),
        };
        let mut sealed = Vec::new();
        head.seal(fields.as_bytes(), &mut sealed);
        forged.push((*file, sealed));
    }
    forged
}

fn sizes() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(1_u64..6, 1..4)
}

proptest! {
    #[test]
    fn any_changed_byte_is_found(sizes in sizes(), every in 0_u64..4, at: prop::sample::Index, flip in 1_u8..) {
        let mut files = journal(&sizes, every);
        let whole = report(&files, Options::default());
        prop_assert!(whole.is_whole(), "{:?}", whole.findings);
        let mut at = at.index(files.iter().map(Vec::len).sum());
        let file = files.iter().position(|bytes| { let here = at < bytes.len(); if !here { at -= bytes.len() } here }).unwrap();
        files[file][at] ^= flip;
        prop_assert!(!report(&files, Options::default()).is_whole());
    }

    #[test]
    fn any_record_removed_before_the_tail_is_found(sizes in sizes(), every in 0_u64..4, at: prop::sample::Index, more in 0_usize..3) {
        let files = journal(&sizes, every);
        let mut all = lines(&files);
        let at = at.index(all.len() - 1);
        let end = (at + 1 + more).min(all.len() - 1);
        all.drain(at..end);
        prop_assert!(!report(&joined(&all, files.len()), Options::default()).is_whole());
    }

    #[test]
    fn any_record_repeated_is_found(sizes in sizes(), every in 0_u64..4, from: prop::sample::Index, to: prop::sample::Index) {
        let files = journal(&sizes, every);
        let mut all = lines(&files);
        let copy = all[from.index(all.len())].clone();
        let to = to.index(all.len() + 1);
        all.insert(to, copy);
        prop_assert!(!report(&joined(&all, files.len()), Options::default()).is_whole());
    }

    #[test]
    fn any_two_records_exchanged_are_found(sizes in sizes(), every in 0_u64..4, one: prop::sample::Index, other: prop::sample::Index) {
        let files = journal(&sizes, every);
        let mut all = lines(&files);
        let (one, other) = (one.index(all.len()), other.index(all.len()));
        prop_assume!(one != other);
        let (first, second) = (all[one].1.clone(), all[other].1.clone());
        (all[one].1, all[other].1) = (second, first);
        prop_assert!(!report(&joined(&all, files.len()), Options::default()).is_whole());
    }

    /// A cut tail is found by what was kept elsewhere; without that, it is among what is said not to be proven.
    #[test]
    fn a_cut_tail_is_found_by_a_head_that_was_kept(sizes in sizes(), every in 0_u64..4, keep: prop::sample::Index) {
        let files = journal(&sizes, every);
        let mut all = lines(&files);
        let head = Line::parse(all.last().unwrap().1.strip_suffix(b"\n").unwrap()).unwrap().hash;
        all.truncate(keep.index(all.len() - 1) + 1);
        let files: Vec<_> = joined(&all, files.len()).into_iter().filter(|file| !file.is_empty()).collect();
        let unaware = report(&files, Options::default());
        prop_assert!(unaware.is_whole() && !unaware.limits().is_empty());
        let aware = report(&files, Options { heads: vec![head], ..Options::default() });
        prop_assert_eq!(kinds(&aware), [Kind::Anchor]);
    }

    /// Whoever changes a record and hashes all that follows anew is found as soon as a checkpoint follows, the tail included.
    #[test]
    fn a_rewrite_is_found_by_the_next_checkpoint(sizes in sizes(), at: prop::sample::Index, remove: bool) {
        let files = journal(&sizes, 1);
        let all = lines(&files);
        let tokens: Vec<_> = (0..all.len()).filter(|at| all[*at].1.windows(7).any(|window| window == b"\"token\"")).collect();
        let at = tokens[at.index(tokens.len())];
        let head = at.checked_sub(1).map_or(Head::default(), |before| {
            Line::parse(all[before].1.strip_suffix(b"\n").unwrap()).unwrap().head()
        });
        let mut changed = all.clone();
        if remove {
            changed.remove(at);
        } else {
            let text = String::from_utf8(changed[at].1.clone()).unwrap().replace("\"r", "\"R");
            changed[at].1 = text.into_bytes();
        }
        let forged = joined(&rehashed(&changed, at, head), files.len());
        prop_assert!(report(&forged, Options::default()).is_whole(), "without the key nobody can tell");
        let found = report(&forged, keyed());
        prop_assert!(kinds(&found).contains(&Kind::Signature));
        prop_assert!(found.proven_through.is_none_or(|proven| proven <= head.seq));
    }
}

#[test]
fn a_key_of_ones_own_vouches_for_nothing() {
    let other = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g
-----END PRIVATE KEY-----
";
    let other = Arc::new(SigningKey::from_pem(other.as_bytes()).unwrap());
    let mut encoder = Encoder::new("id", "node", Head::default(), Some(other));
    let mut bytes = Vec::new();
    encoder.note(time(0), &Note::File { file: 1, oldest: 1 }, &mut bytes);
    let checkpoint = encoder.checkpoint(time(1), &mut bytes);
    assert_eq!(checkpoint.head, encoder.head, "what is published covers the checkpoint");
    let report = report(&[bytes], keyed());
    assert_eq!((kinds(&report), report.unknown_checkpoints), (vec![Kind::NoCheckpoint], 1));
    assert_ne!(report.head, Some(Hash::NONE));
}
