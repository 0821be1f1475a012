use std::collections::HashMap;

use identity_crd::{AzureAssignedIdentitySpec, AzureIdentity, AzureIdentityBinding};
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn assignment(binding: &str, pod: &str) -> AzureAssignedIdentity {
    let mut of = AzureIdentityBinding::new(binding, identity_crd::AzureIdentityBindingSpec::default());
    (of.metadata.namespace, of.metadata.uid) = (Some("team".into()), Some(format!("uid-{binding}")));
    let mut identity = AzureIdentity::new("reader", identity_crd::AzureIdentitySpec::default());
    identity.metadata.namespace = Some("team".into());
    let spec = AzureAssignedIdentitySpec {
        azure_identity_ref: Some(Box::new(identity)),
        azure_binding_ref: Some(Box::new(of)),
        pod: Some(pod.into()),
        pod_namespace: Some("team".into()),
        node_name: Some("node-1".into()),
        ..AzureAssignedIdentitySpec::default()
    };
    AzureAssignedIdentity::new("a", spec)
}

/// A leader's, with time that the test sets.
struct Rig {
    told: Told,
    uptime: Duration,
}

impl Rig {
    fn new() -> Self {
        let mut told = Told::default();
        told.lead(true);
        Self { told, uptime: SECOND }
    }

    fn assigned(&mut self, binding: &str, pods: usize) {
        self.happened(ToldReason::Assigned, binding, pods);
    }

    fn happened(&mut self, reason: ToldReason, binding: &str, pods: usize) {
        for pod in 0..pods {
            self.told.happened(reason, &assignment(binding, &format!("p{pod}")));
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap().checked_add(self.uptime).unwrap()
    }

    fn next(&mut self, quiet: bool) -> ToldNext {
        self.told.next(self.now(), self.uptime, quiet)
    }

    /// Lets time pass until there is something to write.
    fn write(&mut self) -> Telling {
        for _ in 0..10 {
            match self.next(true) {
                ToldNext::Write(telling) => return *telling,
                ToldNext::Wait(Some(until)) => {
                    assert!(until > self.uptime, "it would spin");
                    self.uptime = until;
                }
                ToldNext::Wait(None) => panic!("nothing is to be written"),
            }
        }
        panic!("nothing is written")
    }

    fn done(&mut self, telling: &Telling, outcome: ToldOutcome) {
        self.told.done(telling, outcome, self.uptime);
    }

    fn written(&mut self) -> Telling {
        let telling = self.write();
        self.done(&telling, ToldOutcome::Done);
        telling
    }
}

#[test]
fn two_thousand_pods_are_one_event() {
    let mut rig = Rig::new();
    rig.assigned("web", 2000);
    let telling = rig.written();
    assert_eq!((telling.count, telling.create, &*telling.id.binding.name), (2000, true, "web"));
    assert_eq!(telling.note, "identity team/reader assigned to pods, first to team/p0 on node node-1");
    assert!(telling.name.starts_with("web.") && telling.name.len() == 24, "{}", telling.name);
    assert!(matches!(rig.next(true), ToldNext::Wait(Some(at)) if at >= rig.uptime + QUIET));
    // More of them, seldom: the count goes on.
    let before = rig.uptime;
    rig.assigned("web", 5);
    let more = rig.written();
    assert_eq!((more.count, more.create, &more.name, more.first), (2005, false, &telling.name, telling.first));
    assert!(rig.uptime >= before + REFRESH && more.last > telling.last);
}

#[test]
fn what_comes_and_what_goes_are_two_series_of_each_binding() {
    let mut rig = Rig::new();
    rig.assigned("a", 2);
    rig.assigned("b", 1);
    rig.happened(ToldReason::Unassigned, "a", 1);
    let mut all: Vec<_> =
        (0..3).map(|_| rig.written()).map(|t| (t.id.binding.name.to_string(), t.id.reason, t.count)).collect();
    all.sort();
    let expected = [("a", ToldReason::Assigned, 2), ("a", ToldReason::Unassigned, 1), ("b", ToldReason::Assigned, 1)];
    assert_eq!(all, expected.map(|(name, reason, count)| (name.to_owned(), reason, count)));
    // Three writes, two intervals.
    assert_eq!(rig.uptime, SECOND + GATHER + 2 * INTERVAL);
}

#[test]
fn it_lets_assignments_go_first_but_not_for_ever() {
    let mut rig = Rig::new();
    rig.assigned("a", 1);
    assert_eq!(rig.next(false), ToldNext::Wait(Some(SECOND + GATHER + PATIENCE)));
    rig.uptime += GATHER;
    assert!(matches!(rig.next(false), ToldNext::Wait(Some(_))));
    rig.uptime += PATIENCE;
    assert!(matches!(rig.next(false), ToldNext::Write(_)));
    // One at a time.
    rig.assigned("b", 1);
    rig.uptime += Duration::from_mins(1);
    assert_eq!(rig.next(true), ToldNext::Wait(None));
}

#[test]
fn who_does_not_lead_tells_nothing() {
    let mut rig = Rig::new();
    rig.assigned("a", 1);
    let telling = {
        rig.uptime += GATHER;
        rig.write()
    };
    rig.assigned("b", 1);
    rig.told.lead(false);
    rig.assigned("c", 1);
    assert_eq!(rig.next(true), ToldNext::Wait(None));
    rig.told.lead(true);
    // The end of what was under way is of no interest any more.
    rig.done(&telling, ToldOutcome::Done);
    assert_eq!(rig.next(true), ToldNext::Wait(None));
    rig.assigned("d", 1);
    assert_eq!(&*rig.written().id.binding.name, "d");
}

#[test]
fn a_series_that_was_quiet_for_long_ends() {
    let mut rig = Rig::new();
    rig.assigned("a", 3);
    let first = rig.written();
    rig.uptime += QUIET;
    assert_eq!(rig.next(true), ToldNext::Wait(None));
    assert_eq!((rig.told.series.len(), rig.told.queue.len()), (0, 0));
    rig.assigned("a", 1);
    let next = rig.written();
    assert_eq!((next.count, next.create), (1, true));
    assert_ne!(next.name, first.name);
    // News shortly before the end keep it.
    rig.uptime += QUIET.saturating_sub(SECOND);
    rig.assigned("a", 1);
    let more = rig.written();
    assert_eq!((more.count, more.name), (2, next.name));
}

#[test]
fn what_a_refusal_means() {
    let mut rig = Rig::new();
    rig.assigned("a", 1);
    let telling = rig.write();
    // There already: a request whose answer was lost.
    rig.done(&telling, ToldOutcome::Exists);
    let again = rig.write();
    assert_eq!((again.create, again.count, &again.name), (false, 1, &telling.name));
    // Kubernetes has forgotten it.
    rig.done(&again, ToldOutcome::Missing);
    let made = rig.write();
    assert_eq!((made.create, &made.name), (true, &telling.name));
    // Its namespace is gone: so is the series.
    rig.done(&made, ToldOutcome::Missing);
    assert_eq!(rig.next(true), ToldNext::Wait(None));
    assert_eq!((rig.told.take_dropped(), rig.told.take_dropped()), (1, 0));
}

#[test]
fn it_waits_longer_after_each_failure() {
    let mut rig = Rig::new();
    rig.assigned("a", 1);
    rig.assigned("b", 1);
    let mut gaps = Vec::new();
    for _ in 0..7 {
        let telling = rig.write();
        let at = rig.uptime;
        rig.done(&telling, ToldOutcome::Failed(Duration::ZERO));
        rig.write_later();
        gaps.push(rig.uptime.saturating_sub(at).as_secs());
    }
    assert_eq!(gaps, [1, 2, 4, 8, 16, 30, 30]);
    let telling = rig.write();
    let at = rig.uptime;
    rig.done(&telling, ToldOutcome::Failed(Duration::from_mins(2)));
    rig.write_later();
    assert_eq!(rig.uptime.saturating_sub(at), Duration::from_mins(2), "what the server asks for counts");
}

impl Rig {
    /// Goes to where something is to be written, and does not take it.
    fn write_later(&mut self) {
        let ToldNext::Wait(Some(at)) = self.next(true) else { panic!("it does not wait") };
        self.uptime = at;
    }
}

#[test]
fn it_is_bounded() {
    let mut rig = Rig::new();
    for binding in 0..MOST + 3 {
        rig.assigned(&format!("b{binding}"), 1);
    }
    rig.assigned("b0", 1);
    assert_eq!((rig.told.series.len(), rig.told.take_dropped()), (MOST, 3));
}

#[test]
fn names_are_names_whatever_the_binding_is_called() {
    let first = Timestamp::UNIX_EPOCH;
    let of = |name: &str| {
        let id = SeriesId { binding: ObjectKey::new("n", name), uid: None, reason: ToldReason::Assigned };
        super::name(&id, first)
    };
    for odd in ["x".repeat(253), "ü".repeat(150), String::new(), format!("{}.-rest", "y".repeat(198))] {
        let name = of(&odd);
        assert!(name.len() <= 253 && name.is_ascii() && !name.starts_with('.') && !name.contains(".."), "{name}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Happens(u8, bool, u8),
    Passes(u16),
    Ends(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3_u8, any::<bool>(), 1..20_u8).prop_map(|(binding, went, pods)| Step::Happens(binding, went, pods)),
        (1..900_u16).prop_map(Step::Passes),
        (0..5_u8).prop_map(Step::Ends),
    ]
}

proptest! {
    /// Whatever happens in between, in the end the Events say how many pods there were; and there are few writes.
    #[test]
    fn in_the_end_all_is_told(steps in prop::collection::vec(step(), 1..80)) {
        let mut rig = Rig::new();
        let mut there: HashMap<String, u64> = HashMap::new();
        let mut happened = 0;
        let mut writes = Vec::new();
        let mut under_way: Option<Telling> = None;
        for step in steps {
            match step {
                Step::Happens(binding, went, pods) => {
                    let reason = if went { ToldReason::Unassigned } else { ToldReason::Assigned };
                    rig.happened(reason, &format!("b{binding}"), pods.into());
                    happened += u64::from(pods);
                }
                Step::Passes(seconds) => rig.uptime += Duration::from_secs(seconds.into()),
                Step::Ends(how) => {
                    if let Some(telling) = under_way.take() {
                        let outcome = match how {
                            0 => ToldOutcome::Failed(Duration::ZERO),
                            // Done, though nobody hears of it.
                            1 => { there.insert(telling.name.clone(), telling.count); ToldOutcome::Failed(SECOND) }
                            _ if telling.create && there.contains_key(&telling.name) => ToldOutcome::Exists,
                            _ if !telling.create && !there.contains_key(&telling.name) => ToldOutcome::Missing,
                            _ => { there.insert(telling.name.clone(), telling.count); ToldOutcome::Done }
                        };
                        rig.done(&telling, outcome);
                    }
                }
            }
            if under_way.is_none() && let ToldNext::Write(telling) = rig.next(true) {
                writes.push(rig.uptime);
                under_way = Some(*telling);
            }
        }
        for _ in 0..100 {
            if let Some(telling) = under_way.take() {
                let exists = there.contains_key(&telling.name);
                let outcome = match (telling.create, exists) {
                    (true, true) => ToldOutcome::Exists,
                    (false, false) => ToldOutcome::Missing,
                    _ => { there.insert(telling.name.clone(), telling.count); ToldOutcome::Done }
                };
                rig.done(&telling, outcome);
            }
            match rig.next(true) {
                ToldNext::Write(telling) => under_way = Some(*telling),
                ToldNext::Wait(Some(at)) => rig.uptime = at,
                ToldNext::Wait(None) => break,
            }
        }
        prop_assert_eq!(there.values().sum::<u64>(), happened);
        prop_assert!(writes.windows(2).all(|pair| pair[1] >= pair[0] + INTERVAL));
        prop_assert_eq!((rig.told.series.len(), rig.told.queue.len(), rig.told.take_dropped()), (0, 0, 0));
    }
}
