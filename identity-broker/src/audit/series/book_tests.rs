use std::collections::BTreeSet;

use super::*;
use crate::audit::series::{EventReason, StateFile};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn seen(seq: u64, pod: u32, audience: &str) -> Seen<'static> {
    let object = |name: String, uid: String| Object { namespace: "demo".into(), name: name.into(), uid: uid.into() };
    Seen {
        seq,
        time: Timestamp::from_second(1_800_000_000 + i64::try_from(seq).unwrap()).unwrap(),
        event: EventReason::TokenIssued,
        reason: "issued".into(),
        detail: "".into(),
        address: "10.42.0.7".into(),
        pod: Some(object(format!("web-{pod}"), format!("p{pod}"))),
        binding: Some(object("web".to_owned(), "b".to_owned())),
        identity: Some("demo/sp".into()),
        client_id: Some("4a0d".into()),
        audience: audience.to_owned().into(),
    }
}

fn book(config: Config) -> Book {
    let mut book = Book::new(config, None);
    book.journal("j");
    book
}

fn write(book: &mut Book, now: Duration) -> Write {
    match book.next(now) {
        Next::Write(write) => write,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_event_and_what_is_changed_of_it() {
    let mut book = book(Config::series("node-1"));
    book.take(&seen(7, 0, "https://vault.azure.net"));
    let made = write(&mut book, Duration::ZERO);
    insta::assert_snapshot!("made", serde_json::to_string_pretty(&made.body).unwrap());
    book.done(made.id, Outcome::Done, 3 * MS);
    for seq in 8..10 {
        book.take(&seen(seq, 0, "https://vault.azure.net"));
    }
    assert_eq!(book.next(SECOND), Next::Wait(Some(Duration::from_secs(10) + 3 * MS)), "each series at most every 10 s");
    let changed = write(&mut book, 11 * SECOND);
    assert_eq!((&changed.name, changed.create), (&made.name, false));
    assert_eq!(
        changed.body,
        serde_json::json!({"series": {"count": 3, "lastObservedTime": "2027-01-15T08:00:09.000000Z"}})
    );
    // It has expired: made again, with the absolute count.
    book.done(changed.id, Outcome::Missing, 11 * SECOND);
    let again = write(&mut book, 12 * SECOND);
    assert_eq!((&again.name, again.create, &again.body["series"]), (&made.name, true, &changed.body["series"]));
    assert_eq!(again.body["eventTime"], made.body["eventTime"]);
}

#[test]
fn whom_an_event_is_about() {
    let events = |seen: &Seen<'_>| {
        let mut book = book(Config::series("node-1"));
        book.take(seen);
        write(&mut book, Duration::ZERO).body
    };
    let denied = Seen { event: EventReason::TokenDenied, reason: "no_binding".into(), ..seen(1, 0, "a") };
    let of_pod = Seen { binding: None, detail: "no binding selects it".into(), ..denied.clone() };
    insta::assert_snapshot!("without_a_binding", serde_json::to_string_pretty(&events(&of_pod)).unwrap());
    let of_node = Seen { binding: None, pod: None, identity: None, client_id: None, ..denied };
    insta::assert_snapshot!("without_a_pod", serde_json::to_string_pretty(&events(&of_node)).unwrap());
}

#[test]
fn new_ones_come_first_then_those_that_are_behind_the_longest() {
    let mut book = book(Config::series("n"));
    let mut order = Vec::new();
    for (at, pod) in [(0, 0), (1, 1), (2, 2)] {
        book.take(&seen(at, pod, "a"));
        let write = write(&mut book, SECOND * u32::try_from(at).unwrap() + 20 * SECOND);
        book.done(write.id, Outcome::Done, SECOND * u32::try_from(at).unwrap() + 20 * SECOND);
    }
    for (seq, pod) in [(3, 2), (4, 1), (5, 0), (6, 3)] {
        book.take(&seen(seq, pod, "a"));
    }
    for n in 0..4 {
        let now = (40 + n) * SECOND;
        let write = write(&mut book, now);
        assert_eq!(book.next(now), Next::Wait(None), "one at a time");
        book.done(write.id, Outcome::Done, now);
        assert_eq!(book.next(now + 999 * MS), if n < 3 { Next::Wait(Some(now + SECOND)) } else { Next::Wait(None) });
        order.push(write.whole["related"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(order, ["web-3", "web-0", "web-1", "web-2"]);
}

#[test]
fn a_pod_cannot_take_all_series_for_itself() {
    let mut book = book(Config { most_of_pod: 4, ..Config::series("n") });
    for seq in 0..100 {
        assert!(book.has_room());
        book.take(&seen(seq, 0, &format!("api://{seq}")));
    }
    book.take(&seen(100, 1, "api://a"));
    assert_eq!(book.stats().series, 6);
    let mut counts = Vec::new();
    let mut now = Duration::ZERO;
    while let Next::Write(write) = book.next(now) {
        counts.push((write.whole["note"].as_str().unwrap()[..20].to_owned(), write.count));
        book.done(write.id, Outcome::Refused, now);
        now += SECOND;
    }
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 101);
    assert!(counts.contains(&("token for other audi".to_owned(), 96)), "{counts:?}");
    assert_eq!((book.stats().pending, book.stats().refused), (0, 101));
}

#[test]
fn long_audiences_are_cut_and_stay_apart() {
    let mut book = book(Config::series("n"));
    let long = "é".repeat(1000);
    book.take(&seen(1, 0, &format!("{long}1")));
    book.take(&seen(2, 0, &format!("{long}2")));
    assert_eq!(book.stats().series, 2);
    let note = write(&mut book, Duration::ZERO).whole["note"].as_str().unwrap().to_owned();
    assert!(note.len() <= 1024 && note.contains('…'), "{note}");
}

#[test]
fn without_room_the_rest_waits_until_something_is_said_and_kept() {
    let mut book = book(Config { most_series: 8, ..Config::series("n") });
    for seq in 0..8 {
        book.take(&seen(seq, u32::try_from(seq).unwrap(), "a"));
    }
    assert!(!book.has_room(), "nothing is said of any of them yet");
    let first = write(&mut book, 20 * SECOND);
    book.done(first.id, Outcome::Done, 20 * SECOND);
    assert!(book.has_room());
    assert_eq!((book.stats().series, book.stats().closed), (7, 1));
    book.take(&seen(9, 0, "a"));
    assert_eq!(book.next(30 * SECOND), Next::Save);
    let restarted = Book::new(book.config.clone(), Some(book.state()));
    assert_eq!(restarted.state(), book.state());
    book.saved();
    let names: BTreeSet<_> = (0..8)
        .map(|n| {
            let write = write(&mut book, (30 + n) * SECOND);
            book.done(write.id, Outcome::Done, (30 + n) * SECOND);
            write.name
        })
        .collect();
    assert!(names.contains(&format!("{}.1", first.name)), "the pod's next series has a name of its own: {names:?}");
}

#[test]
fn a_state_is_kept_as_it_is() {
    let mut book = book(Config::series("n"));
    book.take(&seen(1, 0, "a"));
    let directory = tempfile::tempdir().unwrap();
    let file = StateFile::beside(directory.path());
    assert_eq!(file.load(), (None, None));
    file.save(&book.state()).unwrap();
    assert_eq!(file.load(), (Some(book.state()), None));
    std::fs::write(file.path(), "{").unwrap();
    assert!(matches!(file.load(), (None, Some(_))));
}
