//! The decision about one pod, with its reasons, from the objects as they are now.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use identity_core::{
    assign::{self, Event, Index, Relist},
    explain::{Explanation, Verdict},
    lookup::{self, Binding, Exception, NodeIndex, Request, RequestedIdentity},
    object::ObjectKey,
    pod::Pod,
    runtime::source::{Change, Interest, Source, Update},
};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzurePodIdentityException};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{args::Explain, say};

/// For all objects to be listed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: &Explain) -> anyhow::Result<ExitCode> {
    let exceptions_of = args.exception_namespaces.iter().find(|listed| **listed == args.pod.0).map(String::as_str);
    let objects = tokio::time::timeout(PATIENCE, read(&args.source.open().await?, exceptions_of))
        .await
        .with_context(|| format!("not all objects could be listed within {} s", PATIENCE.as_secs()))??;
    let explanations = explain(args, objects, identity_process::now());
    let text = if args.json {
        serde_json::to_string_pretty(&explanations)? + "\n"
    } else {
        explanations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    say(&text)?;
    let all = explanations.iter().all(|explanation| explanation.verdict == Verdict::Yes);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

#[derive(Default)]
struct Objects {
    pods: Option<Vec<Pod>>,
    identities: Option<Vec<AzureIdentity>>,
    bindings: Option<Vec<AzureIdentityBinding>>,
    assigned: Option<Vec<AzureAssignedIdentity>>,
    exceptions: Option<Vec<AzurePodIdentityException>>,
}

/// The first list of each kind; exceptions of one namespace, if they count there.
async fn read(source: &Source, exceptions_of: Option<&str>) -> anyhow::Result<Objects> {
    let mut interests = vec![
        Interest::Pods { node: None },
        Interest::Identities,
        Interest::Bindings,
        Interest::Assigned { node: None },
    ];
    interests.extend(exceptions_of.map(|namespace| Interest::Exceptions { namespace: namespace.to_owned() }));
    let stop = CancellationToken::new();
    let _stop_always = stop.clone().drop_guard();
    let mut updates = source.watch(&interests, None, &stop)?;
    let mut objects = Objects::default();
    while objects.pods.is_none()
        || objects.identities.is_none()
        || objects.bindings.is_none()
        || objects.assigned.is_none()
        || (exceptions_of.is_some() && objects.exceptions.is_none())
    {
        match updates.recv().await {
            Some(Update::Pods(Change::Relist(all))) => objects.pods = Some(all),
            Some(Update::Identities(Change::Relist(all))) => objects.identities = Some(all),
            Some(Update::Bindings(Change::Relist(all))) => objects.bindings = Some(all),
            Some(Update::Assigned(Change::Relist(all))) => objects.assigned = Some(all),
            Some(Update::Exceptions { change: Change::Relist(all), .. }) => objects.exceptions = Some(all),
            // What changes while the rest is being listed is not waited for.
            Some(_) => {}
            None => bail!("the objects cannot be listed"),
        }
    }
    Ok(objects)
}

/// What the controller thinks of it, then what the node would answer.
fn explain(args: &Explain, objects: Objects, now: Timestamp) -> Vec<Explanation> {
    let pods = objects.pods.unwrap_or_default();
    let bindings = objects.bindings.unwrap_or_default();
    let assigned = objects.assigned.unwrap_or_default();
    let key = ObjectKey::new(args.pod.0.as_str(), args.pod.1.as_str());

    let options = lookup::Options {
        cluster_wide: args.cluster_wide_matching,
        exception_namespaces: args.exception_namespaces.iter().cloned().collect(),
        ..lookup::Options::default()
    };
    let mut node = NodeIndex::new(options);
    let on = |pod: &Pod| {
        (*pod.reference.namespace == *key.namespace && *pod.reference.name == *key.name).then(|| pod.node.clone())
    };
    let where_it_runs = pods.iter().find_map(on);
    node.reset_pods(pods.iter().filter(|pod| Some(&pod.node) == where_it_runs.as_ref()).cloned().collect());
    node.reset_bindings(bindings.iter().map(Binding::from).collect());
    node.reset_exceptions(&args.pod.0, objects.exceptions.iter().flatten().map(Exception::from).collect());
    // What cannot be served is part of the explanation.
    let _ = node.reset_assignments(&assigned);
    let identity = match (&args.client_id, &args.object_id, &args.resource_id) {
        (Some(id), ..) => RequestedIdentity::ClientId(id),
        (_, Some(id), _) => RequestedIdentity::ObjectId(id),
        (.., Some(id)) => RequestedIdentity::ResourceId(id),
        _ => RequestedIdentity::Default,
    };
    let answer = node.explain(&key, &Request { resource: &args.resource, identity }, now);

    let options = assign::Options { cluster_wide: args.cluster_wide_matching, ..assign::Options::default() };
    let mut index = Index::new(options);
    for list in [
        Relist::Pods(pods),
        Relist::Identities(objects.identities.unwrap_or_default()),
        Relist::Bindings(bindings),
        Relist::Assigned(assigned),
    ] {
        index.apply(Event::Relist(list));
    }
    vec![index.explain(&key), answer]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::args::{Args, Command};

    /// A Tuesday.
    const NOON: &str = "2026-11-24T12:00:00Z";

    fn args(words: &[&str]) -> Box<Explain> {
        let Command::Explain(args) = Args::parse_from(["identityctl", "explain"].iter().chain(words)).command else {
            unreachable!()
        };
        args
    }

    fn pod() -> Pod {
        Pod::try_from(
            &from_value(json!({
                "metadata": {"namespace": "demo", "name": "app", "uid": "p", "labels": {"aadpodidbinding": "app"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]},
            }))
            .unwrap(),
        )
        .unwrap()
    }

    fn explained(words: &[&str]) -> Vec<Explanation> {
        let binding = from_value(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": {"namespace": "demo", "name": "app", "uid": "b"}, "spec": {"azureIdentity": "absent", "selector": "app"},
        }))
        .unwrap();
        let objects = Objects { pods: Some(vec![pod()]), bindings: Some(vec![binding]), ..Objects::default() };
        explain(&args(words), objects, NOON.parse().unwrap())
    }

    /// A pod that has an identity, in a time box.
    fn in_a_box(now: &str, grant: &Value) -> Vec<Explanation> {
        let (group, version) = ("aadpodidentity.k8s.io", "aadpodidentity.k8s.io/v1");
        let identity = json!({"apiVersion": version, "kind": "AzureIdentity",
            "metadata": {"namespace": "demo", "name": "store", "uid": "i"},
            "spec": {"type": 3, "tenantID": "22222222-2222-4222-8222-222222222222", "clientID": "aaaaaaaa-0006-4000-8000-000000000000"}});
        let binding = json!({"apiVersion": version, "kind": "AzureIdentityBinding",
            "metadata": {"namespace": "demo", "name": "app", "uid": "b"}, "spec": {"azureIdentity": "store", "selector": "app",
                "timeBox": {"windows": [{"schedule": "0 13 * * *", "duration": "1h"}],
                    "grant": {"maxDuration": "2h", "approvers": {"users": ["bob"]}}}}});
        let assigned = from_value(json!({"apiVersion": format!("{group}/v1"), "kind": "AzureAssignedIdentity",
            "metadata": {"namespace": "demo", "name": "a", "uid": "a"},
            "spec": {"azureIdentityRef": identity, "azureBindingRef": binding, "pod": "app", "podNamespace": "demo", "podUID": "p",
                "nodename": "n", "grant": grant},
            "status": {"status": "Assigned"}}))
        .unwrap();
        let objects = Objects {
            pods: Some(vec![pod()]),
            identities: Some(vec![from_value(identity).unwrap()]),
            bindings: Some(vec![from_value(binding).unwrap()]),
            assigned: Some(vec![assigned]),
            ..Objects::default()
        };
        explain(&args(&["demo/app"]), objects, now.parse().unwrap())
    }

    #[test]
    fn whether_it_is_open_now_and_when_that_changes() {
        let cases = [
            (NOON, Value::Null, Verdict::No),
            ("2026-11-24T13:15:00Z", Value::Null, Verdict::Yes),
            (NOON, json!({"name": "g", "until": "2026-11-24T12:30:00Z"}), Verdict::Yes),
            (NOON, json!({"name": "g", "until": "2026-11-24T11:30:00Z"}), Verdict::No),
        ];
        let said: Vec<_> = cases
            .iter()
            .map(|(now, grant, verdict)| {
                let answer = &in_a_box(now, grant)[1];
                assert_eq!(answer.verdict, *verdict, "{answer}");
                format!("{now} {grant}\n{answer}")
            })
            .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_missing_identity_is_named() {
        let both = explained(&["demo/app"]);
        assert!(both.iter().all(|explanation| explanation.verdict != Verdict::Yes), "{both:?}");
        assert!(both[0].to_string().contains("absent"), "{}", both[0]);
    }

    #[test]
    fn a_pod_that_is_not_there_is_said_to_be() {
        assert!(explained(&["demo/other"])[0].to_string().contains("there is no such pod"));
    }
}
