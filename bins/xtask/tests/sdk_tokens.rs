//! Microsoft's own SDKs, unmodified, in pods, against the whole product: both binaries, real netfilter, real TLS.

use std::time::Duration;

use anyhow::{Context, ensure};
use xtask::{
    clock,
    demo::{EXPECTED, Expected, SWAPPED, credentials, swap_manifest},
    lab::{Lab, Language},
    setup::sdk,
};

const SDKS: [(Language, &str); 4] = [
    (Language::Python, "managed"),
    (Language::Python, "default"),
    (Language::Node, "managed"),
    (Language::Node, "default"),
];

#[test]
fn sdks_get_tokens_of_every_type_are_refused_without_a_binding_and_follow_a_swap() -> anyhow::Result<()> {
    let sdks = sdk::ensure()?;
    let lab = Lab::up(None, credentials::fill)?;
    let outcome = (|| {
        let mut applications = Vec::new();
        for expected in &EXPECTED {
            for (language, kind) in SDKS {
                let mut application = lab.sdk(&sdks, language, expected.pod, kind, expected.resource)?;
                application.send()?;
                applications.push((expected, language, kind, application));
            }
        }
        for (expected, language, kind, application) in &mut applications {
            let answer = application.receive()?;
            let what = format!("{language:?} {kind} in {}", expected.pod);
            let claims = answer.claims().context(what.clone())?;
            expected.verify(&claims).context(what.clone())?;
            let expires_on = answer.expires_on.context("no expiry")?;
            ensure!(
                (expires_on - claims.exp).abs() <= 5,
                "{what}: the SDK says {expires_on}, the token {}",
                claims.exp
            );
        }

        for (language, kind) in SDKS {
            let mut application = lab.sdk(&sdks, language, "demo/nobody", kind, "https://vault.azure.net")?;
            let answer = application.ask()?;
            ensure!(answer.token.is_none(), "{language:?} {kind} got a token in a pod without a binding");
            let error = answer.error.context("neither a token nor an error")?;
            if kind == "managed" {
                // The SDK passes the endpoint's own words on: they are in the shape it expects.
                ensure!(error.contains("Identity not found"), "{language:?} {kind}: {error}");
            }
        }

        swap_manifest(&lab)?;
        clock::wait_for(Duration::from_secs(20), || {
            let claims = lab.ask(SWAPPED.pod, "resource=https://vault.azure.net")?.claims()?;
            Ok((claims.appid == SWAPPED.application).then_some(()))
        })?
        .context("the swap did not reach the pod")?;
        for (expected, language, kind, application) in &mut applications {
            let wanted = if expected.pod == SWAPPED.pod { &SWAPPED } else { *expected };
            // The JS SDK keeps a resource's token for all credentials of its process: its next token is another's.
            let resource = match language {
                Language::Python => wanted.resource,
                Language::Node => "https://graph.microsoft.com",
            };
            application.send_for(resource)?;
            let claims = application.receive()?.claims()?;
            Expected { resource, ..*wanted }
                .verify(&claims)
                .with_context(|| format!("after the swap: {language:?} {kind} in {}", expected.pod))?;
        }
        Ok(())
    })();
    let outcome: anyhow::Result<()> = outcome;
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}
