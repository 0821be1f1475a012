//! Every history of a grant within bounds: two controllers at once, with clocks that differ, caches that lag, writes that
//! are under way while others land, restarts; approvals of all kinds, true and forged; policies removed and put back;
//! bindings deleted and created anew. In every state that can be reached the promises are looked at. Then each guard is
//! left out in turn, and some promise must break: else the guard, or the model, is good for nothing.

use std::collections::{HashMap, HashSet, VecDeque};

use identity_crd::{
    Approval, Approvers, AzureIdentityBinding, AzureIdentityGrant, AzureIdentityGrantStatus, GrantPhase, GrantPolicy,
    TimeBox, Withdrawal,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Proof,
    review::{Guard, Guards, review_with},
};

/// A minute, since the settling of a policy is one.
const TICK: i64 = 60;
/// When the grant is created, and the last instant.
const CREATED: i8 = 2;
const LAST: i8 = 5;

/// Entries of `approvals` that somebody may add.
const ALICE: u8 = 1;
const ALICE_AGAIN: u8 = 2;
const BOB: u8 = 4;
/// The requester itself, and somebody who is no approver.
const OTHERS: u8 = 8;
/// By somebody else in the name of an approver, while no policy checks names.
const FORGED: u8 = 16;

const ENTRIES: [(u8, &str); 6] =
    [(ALICE, "alice"), (ALICE_AGAIN, "alice"), (BOB, "bob"), (OTHERS, "ann"), (OTHERS, "eve"), (FORGED, "carol")];
/// What is added at once.
const ADDED: [u8; 5] = [ALICE, ALICE_AGAIN, BOB, OTHERS, FORGED];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Status {
    phase: Option<GrantPhase>,
    from: Option<i8>,
    until: Option<i8>,
    binding: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Grant {
    version: u8,
    approvals: u8,
    denied: bool,
    revoked: bool,
    /// 1: going, 2: gone.
    deleted: u8,
    status: Status,
}

/// What a controller has seen. `None` after a start, before all is listed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct View {
    grant: Grant,
    binding: u8,
    policy: Option<i8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Controller {
    view: Option<View>,
    /// A status under way, for a version of the grant.
    write: Option<(Status, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct World {
    now: i8,
    grant: Grant,
    /// UID, 0 when there is none.
    binding: u8,
    /// Since when the policy is there.
    policy: Option<i8>,
    /// The assignment: for which binding, and the deadline on it.
    assigned: (u8, Option<i8>),
    controllers: [Controller; 2],
    /// Who has truly approved.
    truly: u8,
    /// The first activation that was persisted: deadline, binding, when it truly was.
    first: Option<(i8, u8, i8)>,
    /// What has been done that is done once.
    done: u16,
}

/// What may happen in a run.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    name: &'static str,
    entries: u8,
    others: u16,
    needed: i32,
    duration: i8,
    longest: i8,
    skew: [i8; 2],
}

const DENY: u16 = 1;
const REVOKE: u16 = 2;
const DELETE: u16 = 4;
const VANISH: u16 = 8;
const REMOVE_POLICY: u16 = 16;
const RESTORE_POLICY: u16 = 32;
const DELETE_BINDING: u16 = 64;
const RECREATE_BINDING: u16 = 128;
const RESTART: u16 = 256;

const BASE: Bounds = Bounds { name: "", entries: 0, others: 0, needed: 1, duration: 2, longest: 2, skew: [0, 1] };

const RUNS: [Bounds; 6] = [
    Bounds { name: "two approvers", entries: ALICE | ALICE_AGAIN | BOB | OTHERS, needed: 2, ..BASE },
    Bounds { name: "taken back", entries: ALICE, others: DENY | REVOKE | RESTART, skew: [-1, 1], ..BASE },
    Bounds { name: "deleted", entries: ALICE, others: DELETE | VANISH | RESTART, ..BASE },
    Bounds { name: "forged", entries: OTHERS | FORGED, others: REMOVE_POLICY | RESTORE_POLICY | REVOKE, ..BASE },
    Bounds { name: "another binding", entries: ALICE, others: DELETE_BINDING | RECREATE_BINDING | RESTART, ..BASE },
    Bounds { name: "too long", entries: ALICE, duration: 3, ..BASE },
];

/// What is left out.
#[derive(Clone, Copy, Debug, Default)]
struct Mutation {
    guards: Guards,
    /// Statuses are written whatever the version is.
    unconditional: bool,
    /// Whether the policy is there is looked up in what has been seen of it, not asked when it counts.
    cached_proof: bool,
    /// Whether the binding is there, and which one it is, is what has been seen of it.
    cached_binding: bool,
}

fn at(tick: i8) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::from(tick) * TICK).unwrap()
}

fn tick(text: Option<&String>) -> Option<i8> {
    let second = text?.parse::<Timestamp>().unwrap().as_second();
    Some(i8::try_from((second - 1_800_000_000) / TICK).unwrap())
}

/// What a review comes to: the status to write, the deadline and binding of the stamp, and whether the status hangs on the
/// binding.
type Reviewed = (Option<Status>, Option<(u8, i8)>, bool);

struct Model {
    bounds: Bounds,
    mutation: Mutation,
    reviews: HashMap<(View, i8), Reviewed>,
    settled: HashSet<World>,
}

impl Model {
    fn objects(&self, view: &View) -> (AzureIdentityGrant, Option<AzureIdentityBinding>, Proof) {
        let Grant { approvals, denied, revoked, deleted, status, .. } = view.grant;
        let withdrawal = |is: bool| is.then(|| Withdrawal { by: "alice".into(), reason: None });
        let mut grant = AzureIdentityGrant::default();
        grant.metadata.name = Some("g".into());
        grant.metadata.creation_timestamp = Some(Time(at(CREATED)));
        grant.metadata.deletion_timestamp = (deleted > 0).then(|| Time(at(CREATED)));
        grant.spec.binding_name = "b".into();
        grant.spec.reason = "r".into();
        grant.spec.requested_by = "ann".into();
        grant.spec.duration = format!("{}m", self.bounds.duration);
        grant.spec.approvals = ENTRIES
            .iter()
            .filter(|(bit, _)| approvals & bit != 0)
            // The requester may well be in the group of approvers.
            .map(|(_, by)| Approval {
                by: (*by).into(),
                groups: (*by != "eve").then(|| vec!["sre".into()]),
                reason: None,
            })
            .collect();
        (grant.spec.denied, grant.spec.revoked) = (withdrawal(denied), withdrawal(revoked));
        grant.status = status.phase.map(|phase| AzureIdentityGrantStatus {
            phase: Some(phase),
            active_from: status.from.map(|from| at(from).to_string()),
            active_until: status.until.map(|until| at(until).to_string()),
            binding_uid: (status.binding > 0).then(|| status.binding.to_string()),
            conditions: Vec::new(),
        });
        let binding = (view.binding > 0).then(|| {
            let mut binding = AzureIdentityBinding::default();
            binding.metadata.uid = Some(view.binding.to_string());
            let approvers = Approvers { groups: Some(vec!["sre".into()]), ..Approvers::default() };
            binding.spec.time_box = Some(TimeBox {
                grant: Some(GrantPolicy {
                    required: Some(true),
                    max_duration: format!("{}m", self.bounds.longest),
                    min_approvals: Some(self.bounds.needed),
                    approvers: Some(approvers),
                    ..GrantPolicy::default()
                }),
                ..TimeBox::default()
            });
            binding
        });
        let proof = view.policy.map_or(Proof::Missing("not there".into()), |since| Proof::Since(at(since)));
        (grant, binding, proof)
    }

    fn review(&mut self, view: &View, now: i8) -> Reviewed {
        if view.grant.deleted == 2 {
            return (None, None, false);
        }
        if let Some(known) = self.reviews.get(&(*view, now)) {
            return *known;
        }
        let (grant, binding, proof) = self.objects(view);
        let review = review_with(&grant, binding.as_ref(), &proof, at(now), self.mutation.guards);
        let uid = |uid: Option<&str>| uid.map_or(0, |uid| uid.parse().unwrap());
        let status = review.status.map(|status| Status {
            phase: status.phase,
            from: tick(status.active_from.as_ref()),
            until: tick(status.active_until.as_ref()),
            binding: uid(status.binding_uid.as_deref()),
        });
        // Conditions are not part of the model.
        let status = status.filter(|status| *status != view.grant.status);
        let stamp =
            review.stamp.map(|stamp| (uid(Some(&stamp.binding_uid)), tick(Some(&stamp.until.to_string())).unwrap()));
        let reviewed = (status, stamp, review.hangs_on_binding);
        self.reviews.insert((*view, now), reviewed);
        reviewed
    }

    /// What a controller would have on the assignment.
    fn wanted(&mut self, view: &View, now: i8) -> (u8, Option<i8>) {
        let (_, stamp, _) = self.review(view, now);
        (view.binding, stamp.filter(|(binding, _)| *binding == view.binding).map(|(_, until)| until))
    }

    /// Everything that may happen next.
    fn next(&mut self, world: &World) -> Result<Vec<World>, String> {
        let mut out = Vec::new();
        let mut push = |change: &dyn Fn(&mut World)| {
            let mut next = *world;
            change(&mut next);
            if next != *world {
                out.push(next);
            }
        };
        push(&|w| w.now = (w.now + 1).min(LAST));
        let edit = |w: &mut World, change: &dyn Fn(&mut Grant)| {
            if w.grant.deleted < 2 {
                change(&mut w.grant);
                w.grant.version += 1;
            }
        };
        for bit in ADDED {
            if self.bounds.entries & bit == 0 || world.grant.approvals & bit != 0 {
                continue;
            }
            if bit == FORGED && world.policy.is_some() {
                continue;
            }
            push(&|w| {
                edit(w, &|grant| grant.approvals |= bit);
                w.truly |= bit & !FORGED;
            });
        }
        for bit in (0..9).map(|n| 1_u16 << n) {
            if self.bounds.others & bit == 0 || world.done & bit != 0 {
                continue;
            }
            push(&|w| {
                let before = *w;
                match bit {
                    DENY => edit(w, &|grant| grant.denied = true),
                    REVOKE => edit(w, &|grant| grant.revoked = true),
                    DELETE => edit(w, &|grant| grant.deleted = 1),
                    VANISH => edit(w, &|grant| grant.deleted = 2),
                    REMOVE_POLICY => w.policy = None,
                    RESTORE_POLICY if w.policy.is_none() => w.policy = Some(w.now),
                    DELETE_BINDING => w.binding = 0,
                    RECREATE_BINDING if w.binding == 0 => w.binding = 2,
                    RESTART => w.controllers[0].view = None,
                    _ => {}
                }
                if *w != before {
                    w.done |= bit;
                }
            });
        }
        for n in 0..2 {
            let seen = View { grant: world.grant, binding: world.binding, policy: world.policy };
            match world.controllers[n].view {
                None => push(&|w| w.controllers[n].view = Some(seen)),
                // Each kind has a watch of its own.
                Some(view) => {
                    push(&|w| w.controllers[n].view = Some(View { grant: seen.grant, ..view }));
                    push(&|w| w.controllers[n].view = Some(View { binding: seen.binding, ..view }));
                    if self.mutation.cached_proof {
                        push(&|w| w.controllers[n].view = Some(View { policy: seen.policy, ..view }));
                    }
                    let clock = world.now + self.bounds.skew[n];
                    let policy = if self.mutation.cached_proof { view.policy } else { world.policy };
                    let asked = View { policy, ..view };
                    let (status, _, hangs) = self.review(&asked, clock);
                    let wanted = self.wanted(&asked, clock);
                    // It is read at the API server when it counts, and then the write is sent.
                    let is_so = !hangs || self.mutation.cached_binding || view.binding == world.binding;
                    if let (Some(status), None, true) = (status, world.controllers[n].write, is_so) {
                        push(&|w| w.controllers[n].write = Some((status, view.grant.version)));
                    }
                    push(&|w| w.assigned = wanted);
                }
            }
        }
        for n in (0..2).filter(|n| world.controllers[*n].write.is_some()) {
            let mut next = *world;
            self.land(&mut next, n)?;
            out.push(next);
        }
        Ok(out)
    }

    /// The same world with the least numbers: of versions only the order counts, and a write for a version that is gone is
    /// as good as none.
    fn same_as(&self, mut world: World) -> World {
        let current = world.grant.version;
        for controller in &mut world.controllers {
            if controller.write.is_some_and(|(_, version)| version != current) && !self.mutation.unconditional {
                controller.write = None;
            }
        }
        for view in world.controllers.iter_mut().filter_map(|controller| controller.view.as_mut()) {
            if !self.mutation.cached_proof {
                view.policy = None;
            }
        }
        let mut versions = vec![&mut world.grant.version];
        for controller in &mut world.controllers {
            versions.extend(controller.view.as_mut().map(|view| &mut view.grant.version));
            versions.extend(controller.write.as_mut().map(|(_, version)| version));
        }
        let mut known: Vec<u8> = versions.iter().map(|version| **version).collect();
        known.sort_unstable();
        known.dedup();
        for version in versions {
            *version = u8::try_from(known.partition_point(|one| one < version)).unwrap();
        }
        world
    }

    fn land(&self, world: &mut World, n: usize) -> Result<(), String> {
        let Some((status, version)) = world.controllers[n].write.take() else { return Ok(()) };
        let grant = &mut world.grant;
        if grant.deleted == 2 || (grant.version != version && !self.mutation.unconditional) {
            return Ok(());
        }
        let before = grant.status;
        grant.status = status;
        grant.version += 1;
        if before.phase.is_some_and(|phase| phase.is_final() && Some(phase) != status.phase) {
            return Err(format!("{before:?} was final, and is {status:?}"));
        }
        let taken_back = grant.denied || grant.revoked || grant.deleted > 0;
        let ended = before.phase == Some(GrantPhase::Active) && status.phase == Some(GrantPhase::Revoked);
        if ended && !taken_back && before.binding == world.binding {
            return Err(format!("revoked for want of binding {}, which is there", world.binding));
        }
        if status.phase == Some(GrantPhase::Active) && world.first.is_none() {
            world.first = Some((status.until.unwrap_or(0), status.binding, world.now));
        }
        Ok(())
    }

    /// What must hold in every state.
    fn check(&mut self, world: &World) -> Result<(), String> {
        if let (of, Some(until)) = world.assigned {
            let truly = [ALICE | ALICE_AGAIN, BOB].iter().filter(|who| world.truly & **who != 0).count();
            if i32::try_from(truly).unwrap() < self.bounds.needed {
                return Err(format!("access with {truly} approvals"));
            }
            match world.first {
                None => return Err("access before its deadline is written".into()),
                Some((first, ..)) if first != until => return Err(format!("access until {until}, not {first}")),
                Some((_, binding, _)) if binding != of => return Err("access by another binding".into()),
                Some(_) => {}
            }
            if self.bounds.duration > self.bounds.longest {
                return Err("access for longer than allowed".into());
            }
        }
        if let Some((until, _, when)) = world.first {
            let ahead = self.bounds.skew.iter().max().unwrap();
            if until > when + ahead + self.bounds.duration {
                return Err(format!("activated at {when} until {until}"));
            }
            if world.grant.status.until != Some(until) {
                return Err(format!("the deadline was {until}, and is {:?}", world.grant.status.until));
            }
        }
        self.check_settled(world)
    }

    /// What must hold once all is seen and all writes have landed.
    fn check_settled(&mut self, world: &World) -> Result<(), String> {
        let seen = View { grant: world.grant, binding: world.binding, policy: world.policy };
        let mut calm = *world;
        for n in 0..2 {
            calm.controllers[n].view = Some(seen);
        }
        if !self.settled.insert(calm) {
            return Ok(());
        }
        for round in 0.. {
            let before = calm;
            for n in 0..2 {
                self.land(&mut calm, n)?;
                let view = View { grant: calm.grant, binding: calm.binding, policy: calm.policy };
                let clock = calm.now + self.bounds.skew[n];
                let (status, ..) = self.review(&view, clock);
                calm.controllers[n] =
                    Controller { view: Some(view), write: status.map(|status| (status, view.grant.version)) };
                calm.assigned = self.wanted(&view, clock);
            }
            if calm == before {
                break;
            }
            if round > 8 {
                return Err("the controllers do not come to rest".into());
            }
        }
        let Grant { denied, revoked, deleted, status, .. } = calm.grant;
        let access = calm.assigned.1.is_some_and(|until| calm.now < until);
        let is_final = status.phase.is_some_and(GrantPhase::is_final);
        let same = calm.first.is_some_and(|(_, binding, _)| binding == calm.binding);
        if access && (denied || revoked || deleted > 0 || is_final || !same) {
            return Err(format!("access is left: {status:?}, binding {}", calm.binding));
        }
        if status.phase == Some(GrantPhase::Active) && calm.now >= status.until.unwrap() && deleted < 2 {
            return Err(format!("{status:?} at {}", calm.now));
        }
        // And it is good for something.
        let enough = [ALICE | ALICE_AGAIN, BOB].iter().filter(|who| calm.truly & **who != 0).count()
            >= usize::try_from(self.bounds.needed).unwrap();
        let undisturbed = !(denied || revoked || deleted > 0) && calm.binding == 1 && calm.policy == Some(0);
        let fits = self.bounds.duration <= self.bounds.longest;
        if enough && undisturbed && fits && !matches!(status.phase, Some(GrantPhase::Active | GrantPhase::Expired)) {
            return Err(format!("approved, and yet {status:?}"));
        }
        Ok(())
    }
}

/// All states within bounds, or the first broken promise.
fn explore(bounds: Bounds, mutation: Mutation) -> Result<usize, String> {
    let mut model = Model { bounds, mutation, reviews: HashMap::new(), settled: HashSet::new() };
    let idle = Controller { view: None, write: None };
    let status = Status { phase: None, from: None, until: None, binding: 0 };
    let start = World {
        now: CREATED,
        grant: Grant { version: 0, approvals: 0, denied: false, revoked: false, deleted: 0, status },
        binding: 1,
        policy: Some(0),
        assigned: (0, None),
        controllers: [idle; 2],
        truly: 0,
        first: None,
        done: 0,
    };
    let (mut seen, mut queue) = (HashSet::from([start]), VecDeque::from([start]));
    while let Some(world) = queue.pop_front() {
        model.check(&world).map_err(|broken| format!("{broken} in {world:?}"))?;
        for next in model.next(&world).map_err(|broken| format!("{broken} after {world:?}"))? {
            let next = model.same_as(next);
            if seen.insert(next) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_history_breaks_a_promise() {
    let mut all = 0;
    for bounds in RUNS {
        let states = explore(bounds, Mutation::default()).unwrap_or_else(|broken| panic!("{}: {broken}", bounds.name));
        println!("{}: {states} states", bounds.name);
        all += states;
    }
    println!("grants: {all} states, no promise broken");
    assert!(all > 400_000, "the model has shrunk: {all} states");
}

#[test]
fn every_guard_is_needed() {
    let without = |guard| Mutation { guards: Guards::without(guard), ..Mutation::default() };
    let unconditional = Mutation { unconditional: true, ..Mutation::default() };
    let cached_proof = Mutation { cached_proof: true, ..Mutation::default() };
    let cached_binding = Mutation { cached_binding: true, ..Mutation::default() };
    for (name, mutation, run, promise) in [
        ("Enough", without(Guard::Enough), "two approvers", "access with"),
        ("Distinct", without(Guard::Distinct), "two approvers", "access with 1 approvals"),
        ("NotRequester", without(Guard::NotRequester), "two approvers", "access with"),
        ("Approver", without(Guard::Approver), "two approvers", "access with"),
        ("MaxDuration", without(Guard::MaxDuration), "too long", "access for longer than allowed"),
        ("SameBinding", without(Guard::SameBinding), "another binding", "access"),
        ("NotDenied", without(Guard::NotDenied), "taken back", "access is left"),
        ("NotRevoked", without(Guard::NotRevoked), "taken back", "access is left"),
        ("NotDeleted", without(Guard::NotDeleted), "deleted", "access is left"),
        ("Deadline", without(Guard::Deadline), "deleted", "Active"),
        ("Final", without(Guard::Final), "taken back", "was final"),
        ("Proof", without(Guard::Proof), "forged", "access with 0 approvals"),
        ("ProofAge", without(Guard::ProofAge), "forged", "access with 0 approvals"),
        ("Persisted", without(Guard::Persisted), "taken back", "access before its deadline is written"),
        ("the version", unconditional, "taken back", ""),
        ("a proof that is asked for", cached_proof, "forged", "access with 0 approvals"),
        ("a binding that is asked for", cached_binding, "another binding", "which is there"),
    ] {
        let bounds = RUNS.iter().find(|bounds| bounds.name == run).unwrap();
        let Err(broken) = explore(*bounds, mutation) else { panic!("without {name} nothing breaks") };
        let what = broken.split(" in World").next().unwrap().split(" after World").next().unwrap();
        println!("without {name}: {what}");
        assert!(what.contains(promise), "without {name}: {what}");
    }
}
