//! Tables, and two processes with clocks of their own against one server in every order that a network allows.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn terms() -> Terms {
    Terms::new(15 * SECOND)
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn record(holder: &str, transitions: i32) -> Record {
    Record { holder: holder.into(), duration: 15 * SECOND, acquired: wall(0), renewed: wall(0), transitions }
}

fn step(machine: &mut Machine, at: u64, input: Input) -> Command {
    machine.step(Duration::from_secs(at), wall(i64::try_from(at).unwrap()), 1.0, input)
}

fn done(version: &str) -> Input {
    Input::Written(Written::Done { version: version.into() })
}

/// A machine that took the free lease at second 0.
fn leader() -> Machine {
    let mut machine = Machine::new(terms(), "a".into());
    assert_eq!(step(&mut machine, 0, Input::Wake), Command::Read);
    assert!(matches!(step(&mut machine, 0, Input::Read(None)), Command::Write { version: None, .. }));
    assert_eq!(step(&mut machine, 1, done("1")), Command::Sleep { until: 3 * SECOND });
    machine
}

#[test]
fn takes_a_lease_that_is_not_there_and_renews_it() {
    let mut machine = leader();
    // 13.5 s from when the request was sent, not from when it was answered.
    assert_eq!(machine.deadline(SECOND), Some(Duration::from_millis(13_500)));
    assert_eq!(machine.leader(), Some("a"));
    let Command::Write { record, version } = step(&mut machine, 3, Input::Wake) else { panic!() };
    assert_eq!((version.as_deref(), record.renewed, record.acquired), (Some("1"), wall(3), wall(0)));
    step(&mut machine, 4, done("2"));
    assert_eq!(machine.deadline(4 * SECOND), Some(Duration::from_millis(16_500)));
}

#[test]
fn waits_until_it_has_seen_the_lease_unchanged_for_all_of_its_time() {
    let mut machine = Machine::new(terms(), "b".into());
    step(&mut machine, 100, Input::Wake);
    let other = || Input::Read(Some((record("a", 4), "7".into())));
    assert_eq!(step(&mut machine, 100, other()), Command::Sleep { until: 103 * SECOND });
    assert_eq!(step(&mut machine, 103, Input::Wake), Command::Read);
    // Renewed in between: the time begins anew, whatever the times in it say.
    assert!(matches!(step(&mut machine, 110, Input::Read(Some((record("a", 4), "8".into())))), Command::Sleep { .. }));
    let later = || Input::Read(Some((record("a", 4), "8".into())));
    assert_eq!(step(&mut machine, 124, later()), Command::Sleep { until: 125 * SECOND });
    let Command::Write { record, version } = step(&mut machine, 125, later()) else { panic!() };
    assert_eq!((record.holder.as_str(), record.transitions, version.as_deref()), ("b", 5, Some("8")));
    assert_eq!(machine.deadline(125 * SECOND), None);
    // Somebody else was faster.
    assert_eq!(step(&mut machine, 125, Input::Written(Written::Conflict)), Command::Read);
    assert_eq!(machine.deadline(125 * SECOND), None);
}

#[test]
fn a_deleted_lease_counts_as_held_for_as_long_as_its_holder_may_believe_in_it() {
    let mut machine = Machine::new(terms(), "b".into());
    step(&mut machine, 100, Input::Wake);
    step(&mut machine, 100, Input::Read(Some((record("a", 4), "7".into()))));
    assert_eq!(step(&mut machine, 103, Input::Read(None)), Command::Sleep { until: 106 * SECOND });
    assert_eq!(machine.leader(), Some("a"));
    assert_eq!(step(&mut machine, 114, Input::Read(None)), Command::Sleep { until: 115 * SECOND });
    assert!(matches!(step(&mut machine, 115, Input::Read(None)), Command::Write { version: None, .. }));

    // Nobody held it, or this process did: then nobody else believes.
    let mut machine = Machine::new(terms(), "b".into());
    step(&mut machine, 100, Input::Wake);
    assert!(matches!(step(&mut machine, 100, Input::Read(None)), Command::Write { version: None, .. }));
    let mut machine = leader();
    step(&mut machine, 3, Input::Wake);
    assert_eq!(step(&mut machine, 3, Input::Written(Written::Conflict)), Command::Read);
    assert!(matches!(step(&mut machine, 3, Input::Read(None)), Command::Write { version: None, .. }));
}

#[test]
fn takes_a_released_lease_at_once() {
    let mut machine = Machine::new(terms(), "b".into());
    assert!(matches!(
        step(&mut machine, 5, Input::Read(Some((record("", 4), "7".into())))),
        Command::Write { version: Some(_), .. }
    ));
}

#[test]
fn a_leader_that_slept_through_its_lease_knows_before_it_looks() {
    let mut machine = leader();
    assert_eq!(machine.deadline(600 * SECOND), None);
    assert_eq!(step(&mut machine, 600, Input::Wake), Command::Read);
    let taken = Input::Read(Some((record("b", 1), "9".into())));
    assert!(matches!(step(&mut machine, 600, taken), Command::Sleep { .. }));
    assert_eq!(machine.deadline(600 * SECOND), None);
    assert_eq!(machine.leader(), Some("b"));
}

#[test]
fn a_lost_answer_neither_ends_nor_prolongs_the_lease() {
    let mut machine = leader();
    step(&mut machine, 3, Input::Wake);
    assert_eq!(step(&mut machine, 8, Input::Written(Written::Failed)), Command::Sleep { until: 11 * SECOND });
    assert_eq!(machine.deadline(8 * SECOND), Some(Duration::from_millis(13_500)));
    // The version is not known any more: it reads first.
    assert_eq!(step(&mut machine, 11, Input::Wake), Command::Read);
    let ours = Input::Read(Some((record("a", 0), "2".into())));
    assert!(matches!(step(&mut machine, 11, ours), Command::Write { version: Some(v), .. } if v == "2"));
    step(&mut machine, 12, done("3"));
    assert_eq!(machine.deadline(12 * SECOND), Some(Duration::from_millis(24_500)));
}

#[test]
fn a_conflict_ends_it_at_once() {
    let mut machine = leader();
    step(&mut machine, 3, Input::Wake);
    assert_eq!(step(&mut machine, 4, Input::Written(Written::Conflict)), Command::Read);
    assert_eq!(machine.deadline(4 * SECOND), None);
}

#[test]
fn releases_what_it_holds_and_only_that() {
    let mut machine = leader();
    let Command::Write { record, version } = step(&mut machine, 4, Input::Stop) else { panic!() };
    assert_eq!((record.holder.as_str(), version.as_deref()), ("", Some("1")));
    assert_eq!(machine.deadline(4 * SECOND), None);
    assert_eq!(step(&mut machine, 5, done("2")), Command::Done);

    let mut late = leader();
    assert_eq!(step(&mut late, 14, Input::Stop), Command::Done);
    let mut idle = Machine::new(terms(), "c".into());
    assert_eq!(step(&mut idle, 0, Input::Stop), Command::Done);
}

/// The server: one lease, compare and swap by version.
#[derive(Default)]
struct Server {
    lease: Option<(Record, String)>,
    counter: u64,
}

impl Server {
    fn write(&mut self, record: Record, version: Option<&str>) -> Written {
        if self.lease.as_ref().map(|(_, v)| v.as_str()) != version {
            return Written::Conflict;
        }
        self.counter += 1;
        let version = self.counter.to_string();
        self.lease = Some((record, version.clone()));
        Written::Done { version }
    }
}

/// A process: its machine, its clock, and the command that is under way.
struct Process {
    machine: Machine,
    offset: Duration,
    /// Speed of its clock in thousandths of real time.
    speed: u32,
    command: Command,
    /// A request that reached the server but has not been answered.
    answer: Option<Input>,
    stopped: bool,
}

impl Process {
    fn clock(&self, real: Duration) -> Duration {
        self.offset + real * self.speed / 1000
    }
}

/// What happens next, to which of the processes.
#[derive(Clone, Debug)]
enum Op {
    /// Real time passes.
    Pass(u64),
    /// Its request reaches the server; it may be answered later.
    Arrive(usize),
    /// The answer reaches it. Nothing if it is stopped (SIGSTOP).
    Answer(usize),
    /// It gives the request up; the server has done it or not.
    Lose(usize),
    /// It wakes up if it slept long enough.
    Wake(usize),
    /// SIGSTOP or SIGCONT.
    Stop(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1_u64..8_000).prop_map(Op::Pass),
        4 => (0_usize..2).prop_map(Op::Arrive),
        4 => (0_usize..2).prop_map(Op::Answer),
        1 => (0_usize..2).prop_map(Op::Lose),
        4 => (0_usize..2).prop_map(Op::Wake),
        1 => ((0_usize..2), any::<bool>()).prop_map(|(i, b)| Op::Stop(i, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn two_never_believe_at_once(
        ops in proptest::collection::vec(op(), 1..400),
        offsets in [0_u64..1_000_000, 0..1_000_000],
        // Clocks that differ in speed by less than the margin of a tenth.
        speeds in [970_u32..1030, 970..1030],
    ) {
        let mut server = Server::default();
        let mut real = Duration::ZERO;
        let mut processes: Vec<Process> = (0..2).map(|i| Process {
            machine: Machine::new(terms(), format!("p{i}")),
            offset: Duration::from_millis(offsets[i]),
            speed: speeds[i],
            command: Command::Sleep { until: Duration::ZERO },
            answer: None,
            stopped: false,
        }).collect();
        for op in ops {
            match op {
                Op::Pass(ms) => real += Duration::from_millis(ms),
                Op::Arrive(i) => {
                    let process = &mut processes[i];
                    if process.answer.is_none() {
                        process.answer = match process.command.clone() {
                            Command::Read => Some(Input::Read(server.lease.clone())),
                            Command::Write { record, version } => {
                                Some(Input::Written(server.write(record, version.as_deref())))
                            }
                            _ => None,
                        };
                    }
                }
                Op::Answer(i) | Op::Lose(i) => {
                    let process = &mut processes[i];
                    let lost = matches!(op, Op::Lose(_));
                    let input = match (&process.command, process.answer.take()) {
                        _ if process.stopped => continue,
                        (Command::Read, _) if lost => Input::ReadFailed,
                        (Command::Write { .. }, _) if lost => Input::Written(Written::Failed),
                        (_, Some(answer)) => answer,
                        _ => continue,
                    };
                    let now = process.clock(real);
                    process.command = process.machine.step(now, wall(0), 0.5, input);
                }
                Op::Wake(i) => {
                    let process = &mut processes[i];
                    let now = process.clock(real);
                    if !process.stopped && matches!(process.command, Command::Sleep { until } if now >= until) {
                        process.command = process.machine.step(now, wall(0), 0.5, Input::Wake);
                    }
                }
                Op::Stop(i, stopped) => processes[i].stopped = stopped,
            }
            let believing = processes.iter().filter(|p| p.machine.deadline(p.clock(real)).is_some()).count();
            prop_assert!(believing <= 1);
        }
    }
}

/// With a network that works, one leads and the other takes over after the first is stopped.
#[test]
fn somebody_leads() {
    let mut server = Server::default();
    let mut machines = [Machine::new(terms(), "a".into()), Machine::new(terms(), "b".into())];
    let mut commands = [Command::Sleep { until: Duration::ZERO }, Command::Sleep { until: Duration::ZERO }];
    let mut leaders = Vec::new();
    for second in 0_u32..60 {
        let now = second * SECOND;
        for i in 0..2 {
            if i == 0 && second > 20 {
                continue;
            }
            if matches!(commands[i], Command::Sleep { until } if now < until) {
                continue;
            }
            commands[i] = machines[i].step(now, wall(0), 0.5, Input::Wake);
            loop {
                let input = match commands[i].clone() {
                    Command::Read => Input::Read(server.lease.clone()),
                    Command::Write { record, version } => Input::Written(server.write(record, version.as_deref())),
                    _ => break,
                };
                commands[i] = machines[i].step(now, wall(0), 0.5, input);
            }
        }
        leaders.push(machines.iter().position(|m| m.deadline(now).is_some()));
    }
    assert_eq!(leaders[0], Some(0));
    assert_eq!(leaders[20], Some(0));
    assert_eq!(*leaders.last().unwrap(), Some(1));
    let taken = leaders.iter().position(|l| *l == Some(1)).unwrap();
    assert!((33..=37).contains(&taken), "taken over at second {taken}");
}
