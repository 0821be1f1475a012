//! Tour `time-box`: the concept's example, "access to a centralized data store between midnight and 1 AM during business days
//! only". The objects are `examples/time-box`; the clock of both binaries is the lab's and is set to every moment that matters.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use jiff::Timestamp;

use super::{
    credentials,
    stage::{self, SOON, Stage, Turn, refusal},
};
use crate::{
    clock::{self, Stopwatch},
    files,
    lab::{Conversation, Language},
    paths,
    setup::sdk::Sdks,
    term,
};

const EXAMPLE: &str = "time-box/bindings.yaml";
const POD: &str = "default/front-end";
const RESOURCE: &str = "https://database.windows.net";
const QUERY: &str = "resource=https%3A%2F%2Fdatabase.windows.net%2F";
const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: front-end, namespace: default, labels: {aadpodidbinding: front-end}}\n\
                        spec: {containers: [{name: main, image: example.invalid/app}]}\n";
/// Real tokens live for 60 to 90 minutes: these reach past the closing.
const LAB: &str = "clock: 2026-12-03T23:59:00-08:00\nentra: {tokenLifetimeSeconds: 5400}\n";
const LIFE: i64 = 5400;
/// How long before an opening or a closing the clock is set, to go on from there by itself.
const LEAD: Duration = Duration::from_secs(3);
/// Opening, closing and the next opening.
const OPENS: &str = "2026-12-04T08:00:00Z";
const CLOSES: &str = "2026-12-04T09:00:00Z";
const MONDAY: &str = "2026-12-07T08:00:00Z";

/// The manifests. The example's identity is of type 3, whose credential is a token of the API server: that keeps the machine's
/// time, so by the lab's clock it ended long ago. A client secret does not age.
pub(super) fn fill(directory: &Path) -> anyhow::Result<()> {
    let example = files::read(&paths::root().join("examples").join(EXAMPLE))?;
    ensure!(example.contains("  type: 3\n"), "the identity of {EXAMPLE} is no longer of type 3");
    let objects =
        example.replace("  type: 3\n", "  type: 1\n  clientPassword: {name: data-store, namespace: default}\n");
    let secret = credentials::secret("data-store", &[("clientSecret", credentials::password()?.as_bytes())])
        .replace("namespace: demo", "namespace: default");
    let all =
        [("bindings.yaml", objects.as_str()), ("secret.yaml", &secret), ("pod.yaml", MANIFEST), ("lab.yaml", LAB)];
    stage::write(directory, &[], &all)
}

/// The story.
pub(super) fn story(stage: &Stage, sdks: &Sdks) -> anyhow::Result<()> {
    let mut sdk = stage.lab.sdk(sdks, Language::Python, POD, "managed", RESOURCE)?;
    term::step(
        "the binding and the identity of examples/time-box: from midnight, for 1h, MON-FRI, in America/Los_Angeles",
    );
    term::step("the clock of controller and node is the lab's; kube-apiserver and the pods keep the machine's");

    term::heading("Thursday, 3 December 2026, 23:59 in Los Angeles");
    closed(stage, &mut sdk, OPENS)?;

    term::heading("Friday, 0:00: the box opens");
    let turn = at(stage, "2026-12-03T23:59:57-08:00", (403, 200))?;
    term::step(format_args!(
        "refused {} times before midnight; the first token {} ms after it at most",
        turn.before,
        turn.late.as_millis()
    ));
    open(&mut sdk, &turn)?;
    status(stage, "WindowOpened", "True", CLOSES)?;

    term::heading("Friday, 1:00: the box closes, and the API server is down");
    if stage.is_cluster() {
        stage.command(&["fault", "api-down", "on"])?;
    } else {
        term::step("(without --kube there is no API server to be down)");
    }
    let turn = at(stage, "2026-12-04T00:59:57-08:00", (200, 403))?;
    term::step(format_args!(
        "served {} times before one o'clock; refused {} ms after it at most",
        turn.before,
        turn.late.as_millis()
    ));
    closed(stage, &mut sdk, MONDAY)?;
    if stage.is_cluster() {
        stage.command(&["fault", "api-down", "off"])?;
        term::step("the API server is back: the controller writes what it could not");
    }
    status(stage, "WindowClosed", "False", MONDAY)?;

    term::heading("Saturday, 0:30: no business day");
    set(stage, "2026-12-05T00:30:00-08:00")?;
    closed(stage, &mut sdk, MONDAY)?;

    term::heading("Friday, 25 December, 0:30: excludeDates");
    set(stage, "2026-12-25T00:30:00-08:00")?;
    closed(stage, &mut sdk, "2026-12-28T08:00:00Z")?;

    term::heading("The clock is put back to Friday, 4 December, 0:30");
    // The node looks at the clock by itself, at least once a second: here it has seen it, since it was asked.
    set(stage, "2026-12-04T00:30:00-08:00")?;
    let text = refusal(&stage.lab.ask(POD, QUERY)?)?;
    term::step(format_args!("403 {text}"));
    term::step("a clock that is put back reopens nothing");
    Ok(())
}

fn set(stage: &Stage, time: &str) -> anyhow::Result<()> {
    stage.command(&["clock", "set", time]).map(drop)
}

/// Sets the clock to [`LEAD`] before a moment and asks until the answer is another.
fn at(stage: &Stage, time: &str, statuses: (u16, u16)) -> anyhow::Result<Turn> {
    let watch = Stopwatch::start();
    set(stage, time)?;
    stage.turn(POD, QUERY, statuses, watch, LEAD)
}

/// The endpoint and an SDK are refused at once, and told when the box opens.
fn closed(stage: &Stage, sdk: &mut Conversation, opens: &str) -> anyhow::Result<()> {
    let answer = stage.lab.ask(POD, QUERY)?;
    let text = refusal(&answer)?;
    ensure!(text.contains(opens), "it does not say that the box opens at {opens}: {text}");
    term::step(format_args!("403 {text}"));
    let answer = sdk.ask()?;
    let error = answer.error.context("the SDK got a token")?;
    ensure!(error.contains(&text), "the SDK does not say why: {error}");
    let class = error.split(':').next().unwrap_or_default();
    term::step(format_args!("Python, after {} ms: {class} with the same text", answer.ms));
    Ok(())
}

/// What is handed out ends with the box, whatever the token's own end is.
fn open(sdk: &mut Conversation, turn: &Turn) -> anyhow::Result<()> {
    let closes = CLOSES.parse::<Timestamp>()?;
    let answer = &turn.answer;
    let number = |name: &str| -> anyhow::Result<i64> {
        answer.field(name).parse().with_context(|| format!("{name} is no number: {:?}", answer.field(name)))
    };
    let (end, left) = (number("expires_on")?, number("expires_in")?);
    ensure!(end == closes.as_second(), "expires_on is {end}, not {}", closes.as_second());
    ensure!((3590..=3600).contains(&left), "expires_in is {left} just after midnight");
    let claims = answer.claims()?;
    let own = Timestamp::from_second(claims.exp)?;
    let opens = OPENS.parse::<Timestamp>()?;
    ensure!(
        (0..=10).contains(&(claims.exp - opens.as_second() - LIFE)),
        "the token's own end is {own}, not {LIFE} s after its issue"
    );
    term::step(format_args!("200 expires_in {left}, expires_on {end} = {closes}: the closing"));
    term::step(format_args!(
        "the token's own end (exp) is {own}: Entra takes nothing back, so nothing says so to the pod"
    ));
    let answer = sdk.ask()?;
    let claims = answer.claims()?;
    ensure!(claims.aud.trim_end_matches('/') == RESOURCE, "the audience is {}", claims.aud);
    // It counts from `expires_in`, by the pod's clock, which is the machine's.
    let left = answer.expires_on.context("the SDK says no end")? - clock::now().as_second();
    ensure!((3580..=3600).contains(&left), "the SDK thinks that the token has {left} s left");
    term::step(format_args!("Python: a token for {}, for {left} s", claims.aud));
    Ok(())
}

/// What the controller says about it in the cluster.
fn status(stage: &Stage, reason: &str, open: &str, next: &str) -> anyhow::Result<()> {
    if !stage.is_cluster() {
        return Ok(());
    }
    let shown = clock::wait_for(SOON, || {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Open")].status} {.status.nextTransition}"#;
        let text = stage.kubectl(&["get", "azureidentitybinding", "nightly-reports", "-o", path])?;
        Ok((text == format!("{open} {next}")).then_some(()))
    })?;
    shown.with_context(|| format!("the binding does not get Open={open} with nextTransition {next}"))?;
    stage.show(&["get", "azureidentitybindings", "-o", "wide"])?;
    let note = stage.event(reason, "nightly-reports")?;
    term::step(format_args!("Event {reason}: {note}"));
    Ok(())
}
