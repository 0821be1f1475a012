//! The conformance kit: every unmodified client, in a pod, against the product through real netfilter, in every situation
//! that a pod can be in. `cargo xtask test sdk` runs it; [`page`] writes what came of it.

pub mod cells;
pub mod clients;
mod counter;
pub mod limits;
pub mod page;
pub mod scene;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

use self::{cells::Cell, clients::Client};
use crate::{
    application::{Application, Id, Kind, Question, SdkAnswer},
    clock::{self, Stopwatch},
    lab::{Answer, Lab},
    setup::sdk,
};

/// Loading a client, on a busy machine.
const LOAD: Duration = Duration::from_mins(1);
/// The longest that a client may take for an answer: longer than any that gives up by itself in these cells.
const ANSWER: Duration = Duration::from_mins(1);
/// How long a change of objects may take to be in force.
const CHANGE: Duration = Duration::from_secs(20);
/// What "slow" means.
const SLOW: Duration = Duration::from_secs(3);
/// Clients that are measured at a time: more would measure the machine.
const AT_A_TIME: usize = 2;

/// A client, its process and what came of it.
#[derive(Debug)]
pub struct Row {
    /// The client.
    pub client: Client,
    /// Its version.
    pub version: String,
    /// Results by cell.
    pub results: BTreeMap<Cell, cells::Result>,
}

struct Running<'a> {
    lab: &'a Lab,
    client: Client,
    pod: String,
    application: Application,
    results: BTreeMap<Cell, cells::Result>,
}

impl Running<'_> {
    fn asked(&self) -> anyhow::Result<u64> {
        counter::read(self.lab, &self.pod)
    }

    fn note(&mut self, cell: Cell, answer: &SdkAnswer, before: u64) -> anyhow::Result<()> {
        let requests = self.asked()? - before;
        self.results.insert(cell, cells::judge(self.client, cell, answer, requests));
        Ok(())
    }

    fn ask(&mut self, cell: Cell) -> anyhow::Result<()> {
        let before = self.asked()?;
        self.application.send(&cell.question(self.client))?;
        let answer = self.application.receive(ANSWER).with_context(|| format!("{} {cell:?}", self.pod))?;
        self.note(cell, &answer, before)
    }
}

/// Runs every cell of every client in one lab.
///
/// # Errors
/// When a situation cannot be brought about. A client's failure is in the result.
pub fn run(kit: &sdk::Kit) -> anyhow::Result<Vec<Row>> {
    let lab = Lab::up(None, scene::fill)?;
    let rows = cells_of(&lab, kit).with_context(|| format!("the last lines of the logs:\n{}", lab.log_tail()));
    let down = lab.down();
    let rows = rows?;
    down?;
    Ok(rows)
}

fn cells_of(lab: &Lab, kit: &sdk::Kit) -> anyhow::Result<Vec<Row>> {
    let mut running = start(lab, kit)?;
    let all = &mut running;

    // Nothing is bound yet.
    each(all, |one| one.ask(Cell::NoIdentity))?;

    // Bound but not assigned yet, since the controller stands still: requests are held.
    let controller = lab.still("identity-controller")?;
    lab.write("first.yaml", &scene::identity(scene::FIRST))?;
    lab.write("first-binding.yaml", &scene::binding(scene::FIRST, &[]))?;
    let pod = scene::pod(Client::Curl);
    clock::wait_for(CHANGE, || Ok((probe(lab, &pod)?.status == 503).then_some(())))?
        .context("the binding did not reach the node")?;
    held(all, Cell::Assigned, 1, Duration::ZERO, || {
        drop(controller);
        Ok(())
    })?;

    each(all, |one| [Cell::NoId, Cell::Vault, Cell::Default].into_iter().try_for_each(|cell| one.ask(cell)))?;

    fault(lab, "imds-hang", "on")?;
    held(all, Cell::Slow, 1, SLOW, || fault(lab, "imds-hang", "off"))?;
    fault(lab, "imds-429-once", "on")?;
    // Not all at once: that would be more than the endpoint takes in a second without any fault.
    each(all, |one| one.ask(Cell::ThrottledOnce))?;
    fault(lab, "imds-429-once", "off")?;
    fault(lab, "imds-429", "on")?;
    // Until each client has been told once: it has asked again, or has given up.
    held(all, Cell::Throttled, 2, Duration::ZERO, || fault(lab, "imds-429", "off"))?;

    // A second identity of the same weight.
    let audiences = [scene::BY_CLIENT_ID, scene::BY_RESOURCE_ID, scene::BY_OBJECT_ID];
    lab.write("second.yaml", &scene::identity(scene::SECOND))?;
    lab.write("second-binding.yaml", &scene::binding(scene::SECOND, &audiences))?;
    for client in Client::ALL {
        let pod = scene::pod(client);
        clock::wait_for(CHANGE, || Ok((probe(lab, &pod)?.status == 400).then_some(())))?
            .with_context(|| format!("{pod} did not get its second identity"))?;
    }
    each(all, |one| {
        [Cell::Several, Cell::ClientId, Cell::ResourceId, Cell::ObjectId, Cell::WrongId, Cell::Closed]
            .into_iter()
            .try_for_each(|cell| one.ask(cell))
    })?;

    let mut rows = Vec::new();
    for mut one in running {
        ensure!(one.results.len() == Cell::ALL.len(), "{} has {} results", one.pod, one.results.len());
        let version = one.application.version(LOAD)?.to_owned();
        rows.push(Row { client: one.client, version, results: one.results });
    }
    rows.sort_by_key(|row| row.client);
    Ok(rows)
}

/// Starts a process for each client, and lets each ask once, so that no cell measures how long a client takes to load.
fn start<'a>(lab: &'a Lab, kit: &sdk::Kit) -> anyhow::Result<Vec<Running<'a>>> {
    let mut running = Vec::new();
    for client in Client::ALL {
        let pod = scene::pod(client);
        counter::begin(lab, &pod)?;
        let errors = lab.scratch().join(format!("{}.stderr.log", client.pod()));
        let application = Application::start(lab.inside(&pod, &client.command(kit)), Some(&errors))?;
        running.push(Running { lab, client, pod, application, results: BTreeMap::new() });
    }
    each(&mut running, |one| {
        let what = one.pod.clone();
        one.application.version(LOAD).with_context(|| what.clone())?;
        let id = Some(Id::ClientId("dddddddd-0000-4000-8000-000000000000".to_owned()));
        let question = Question { kind: Kind::Managed, resource: "https://load.example".to_owned(), id };
        one.application.send(&question)?;
        one.application.receive(ANSWER).context(what).map(drop)
    })?;
    Ok(running)
}

/// Does `work` for each, a few at a time.
fn each(all: &mut [Running<'_>], work: impl Fn(&mut Running<'_>) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let queue = Mutex::new(all.iter_mut());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(one) = next else { return Ok(()) };
                        work(one)?;
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
    })
}

/// Lets all clients ask at once; when each has sent `requests` or has its answer, and `pause` has passed, `then` happens;
/// then the answers are waited for.
fn held(
    all: &mut [Running<'_>],
    cell: Cell,
    requests: u64,
    pause: Duration,
    then: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let mut waiting = Vec::new();
    for one in all.iter_mut() {
        let before = one.asked()?;
        one.application.send(&cell.question(one.client))?;
        waiting.push((one, before, None));
    }
    let ready = clock::wait_for(ANSWER, || {
        let mut ready = watch.elapsed() >= pause;
        for (one, before, answer) in &mut waiting {
            if answer.is_none() {
                *answer = one.application.received()?;
            }
            ready &= answer.is_some() || one.asked()? >= *before + requests;
        }
        Ok(ready.then_some(()))
    })?;
    ready.with_context(|| format!("{cell:?}: not all clients have asked"))?;
    then()?;
    for (one, before, answer) in waiting {
        let answer = match answer {
            Some(answer) => answer,
            None => one.application.receive(ANSWER).with_context(|| format!("{} {cell:?}", one.pod))?,
        };
        one.note(cell, &answer, before)?;
    }
    Ok(())
}

fn probe(lab: &Lab, pod: &str) -> anyhow::Result<Answer> {
    lab.ask(pod, "resource=https%3A%2F%2Fprobe.example")
}

fn fault(lab: &Lab, name: &str, state: &str) -> anyhow::Result<()> {
    lab.command(&["fault", name, state]).run_quietly()
}
