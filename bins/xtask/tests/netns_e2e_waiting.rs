//! A request that is there before its assignment is answered as soon as the assignment arrives: by events, not by a timer.

#![allow(clippy::print_stdout, reason = "the measured time is shown")]

use std::{thread, time::Duration};

use anyhow::{Context, ensure};
use xtask::{
    clock::{self, Stopwatch},
    demo::{EXPECTED, credentials},
    lab::{Answer, Lab},
};

const BINDING: &str = "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {name: late, namespace: demo}\n\
                       spec: {azureIdentity: app-secret, selector: late}\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: demo, labels: {aadpodidbinding: late}}\n\
                   spec: {containers: [{name: main, image: example.invalid/app}]}\n";
/// A pod that asks before its address is published, as init containers do.
const EARLY: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: early, namespace: demo, labels: {aadpodidbinding: app}}\n\
                     spec: {containers: [{name: main, image: example.invalid/app}]}\n";
/// Well below the bound for which a request is held (5 s), well above what starting curl on a busy machine takes.
const BOUND: Duration = Duration::from_secs(2);

/// The pod exists and no binding selects it: it is refused at once. The binding appears: the next request is served. The
/// identity it refers to appears last, while a request is being held: that request is served.
#[test]
fn a_held_request_is_answered_when_its_assignment_arrives() -> anyhow::Result<()> {
    let lab = Lab::up(None, |directory| {
        credentials::fill(directory)?;
        xtask::files::replace(&directory.join("late-pod.yaml"), POD)?;
        xtask::files::replace(&directory.join("early-pod.yaml"), &format!("{EARLY}status: {{podIP: ''}}\n"))
    })?;
    let outcome = held(&lab).and_then(|()| unpublished(&lab));
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

fn held(lab: &Lab) -> anyhow::Result<()> {
    let query = "resource=https%3A%2F%2Fvault.azure.net";
    let watch = Stopwatch::start();
    let refused = lab.ask("demo/late", query)?;
    ensure!(refused.status == 400, "{refused:?}");
    ensure!(watch.elapsed() < BOUND, "a pod without a binding was kept waiting for {}", watch.seconds());

    // Binding first, identity later: in between the node knows that an assignment is to be expected.
    let identities = xtask::files::read(&lab.manifests().join("identities.yaml"))?;
    lab.write("late-binding.yaml", &BINDING.replace("app-secret", "late"))?;
    // Seen by the node once a request is held to its bound instead of being refused at once.
    clock::wait_for(Duration::from_secs(20), || Ok((lab.ask("demo/late", query)?.status == 503).then_some(())))?
        .context("the binding did not reach the node")?;
    let late = identities
        .split("---\n")
        .find(|document| document.contains("name: app-secret, namespace: demo}\nspec"))
        .context("no identity to copy")?
        .replacen("name: app-secret,", "name: late,", 1);
    let (answer, after) = ask_then(lab, "demo/late", || lab.write("late-identity.yaml", &late))?;
    EXPECTED[1].verify(&answer.claims()?)?;
    println!("answered {} ms after the identity appeared", after.as_millis());
    ensure!(after < BOUND, "answered {} ms after the identity appeared", after.as_millis());
    Ok(())
}

fn unpublished(lab: &Lab) -> anyhow::Result<()> {
    let (answer, after) = ask_then(lab, "demo/early", || lab.write("early-pod.yaml", EARLY))?;
    EXPECTED[1].verify(&answer.claims()?)?;
    println!("answered {} ms after the address was published", after.as_millis());
    ensure!(after < BOUND, "answered {} ms after the address was published", after.as_millis());
    Ok(())
}

/// Asks from a pod, lets `then` happen while the request is being held, and returns the answer with the time it took from
/// there.
fn ask_then(lab: &Lab, pod: &str, then: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(Answer, Duration)> {
    thread::scope(|scope| {
        let request = scope.spawn(|| lab.ask(pod, "resource=https%3A%2F%2Fvault.azure.net"));
        // The request must be on its way first.
        lab.wait_for_connection(pod)?;
        let watch = Stopwatch::start();
        then()?;
        let answer = request.join().map_err(|_| anyhow::anyhow!("the request panicked"))??;
        Ok((answer, watch.elapsed()))
    })
}
