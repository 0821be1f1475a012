//! Bad input of every kind, through the real binaries, one lab for all: each case yields one clear error or condition, and
//! after each case a pod that has nothing to do with it still gets its token.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use xtask::{
    clock,
    demo::{EXPECTED, credentials},
    files,
    lab::{Answer, Lab},
};

const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";
/// The value of a client secret that Entra does not know. It must not be found in any log or answer.
const WRONG_SECRET: &str = "the-wrong-secret-9f3c1d";
/// The password that does not open the archive.
const WRONG_PASSWORD: &str = "the-wrong-password-7be2aa";

type Case = (&'static str, fn(&Lab) -> anyhow::Result<()>);

const CASES: &[Case] = &[
    ("malformed YAML names file, line and column", malformed_yaml),
    ("an unknown field is named", unknown_field),
    ("a binding to a missing identity has a condition", missing_identity),
    ("a missing Secret is named", missing_secret),
    ("a missing key is named", missing_key),
    ("an unreadable PKCS#12 archive is said to be one", unreadable_archive),
    ("a wrong password is said to be one", wrong_password),
    ("Entra's refusal carries its AADSTS code", refused_by_entra),
    ("an authority outside the allowed hosts is refused", authority_outside),
    ("two pods with one address get nothing", two_pods_one_address),
    ("an address of no pod is refused as temporary", unknown_address),
    ("a finished pod gets nothing", finished_pod),
    ("a host-network pod gets nothing of its binding", host_network_pod),
    ("a direct connection to the broker's port is refused", direct_connection),
    ("a truncated request ends its own connection only", truncated_request),
    ("an oversized request is refused", oversized_request),
    ("no secret is in any log", no_secret_in_logs),
];

#[test]
fn bad_input_yields_one_clear_error_and_leaves_the_rest_alone() -> anyhow::Result<()> {
    let lab = Lab::up(None, fill)?;
    let mut failures = Vec::new();
    for (name, case) in CASES {
        let outcome = case(&lab).and_then(|()| others_are_served(&lab).context("a pod that has nothing to do with it"));
        println!("{} {name}", if outcome.is_ok() { "ok  " } else { "FAIL" });
        if let Err(error) = outcome {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}\n\nlogs:\n{}", failures.join("\n"), lab.log_tail());
    }
    lab.down()
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    credentials::fill(directory)?;
    let pods = [
        pod("missing-identity", "", ""),
        pod("missing-secret", "", ""),
        pod("missing-key", "", ""),
        pod("unreadable", "", ""),
        pod("wrong-password", "", ""),
        pod("refused", "", ""),
        pod("outside", "", ""),
        // It runs; its address is not published.
        pod("early", "", "status: {podIP: ''}"),
    ];
    // Entra knows the application, by another secret.
    files::replace(
        &directory.join("lab.yaml"),
        "tenants:\n- id: 22222222-2222-4222-8222-222222222222\n  applications:\n  \
         - {clientId: bbbbbbbb-0000-4000-8000-000000000006, secrets: [{value: the-right-secret}]}\n\
         nodeArguments: [--hold, 1s]\n",
    )?;
    files::replace(&directory.join("bad-pods.yaml"), &pods.join("---\n"))
}

fn pod(name: &str, spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{aadpodidbinding: {name}}}}}\n\
         spec:\n{spec}  containers: [{{name: main, image: example.invalid/app}}]\n{status}\n"
    )
}

/// An identity of type 1 or 2 with its binding; `more` are further lines of the identity's spec.
fn identity(name: &str, kind: u8, client_id: &str, more: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n  \
         type: {kind}\n  tenantID: 22222222-2222-4222-8222-222222222222\n  clientID: {client_id}\n{more}---\n{}",
        binding(name, name)
    )
}

fn binding(name: &str, identity: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {{name: {name}, namespace: demo}}\n\
         spec: {{azureIdentity: {identity}, selector: {name}}}\n"
    )
}

fn others_are_served(lab: &Lab) -> anyhow::Result<()> {
    EXPECTED[1].verify(&lab.ask(EXPECTED[1].pod, VAULT)?.claims()?)
}

/// Asks until the answer's description contains `what`: an object that was just written has yet to arrive.
fn refused_with(lab: &Lab, pod: &str, what: &[&str]) -> anyhow::Result<Answer> {
    let mut last = None;
    let found = clock::wait_for(Duration::from_secs(20), || {
        let answer = lab.ask(pod, VAULT)?;
        ensure!(answer.field("access_token").is_empty(), "{pod} got a token");
        let description = answer.field("error_description").to_lowercase();
        let found = what.iter().all(|what| description.contains(&what.to_lowercase()));
        last = Some(answer.clone());
        Ok(found.then_some(answer))
    })?;
    let answer = found.with_context(|| format!("no answer with {what:?}; the last was {last:?}"))?;
    ensure!(answer.status >= 400, "a refusal with status {}", answer.status);
    ensure!(!answer.field("error").is_empty(), "not the endpoint's error shape: {}", answer.body);
    ensure!(!answer.body.contains(WRONG_SECRET) && !answer.body.contains(WRONG_PASSWORD), "the answer has a secret");
    Ok(answer)
}

fn malformed_yaml(lab: &Lab) -> anyhow::Result<()> {
    lab.write("malformed.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [unclosed\nspec: {}\n")?;
    let line = lab.wait_for_log("malformed.yaml", Duration::from_secs(20))?;
    let place = line.split("malformed.yaml").nth(1).unwrap_or_default();
    let numbers = place.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()).count();
    ensure!(numbers >= 2, "no line and column after the file's name: {line}");
    std::fs::remove_file(lab.manifests().join("malformed.yaml")).context("cannot remove the file")
}

fn unknown_field(lab: &Lab) -> anyhow::Result<()> {
    let text = identity("unknown-field", 1, "bbbbbbbb-0000-4000-8000-000000000001", "  clientPasword: {name: x}\n");
    lab.write("unknown-field.yaml", &text)?;
    lab.wait_for_log("clientPasword", Duration::from_secs(20))?;
    Ok(())
}

fn missing_identity(lab: &Lab) -> anyhow::Result<()> {
    lab.write("missing-identity.yaml", &binding("missing-identity", "there-is-none"))?;
    let condition = wait_for_condition(lab, "AzureIdentityBinding", "missing-identity", "IdentityFound", "False")?;
    ensure!(condition.contains("there-is-none"), "the message does not name the identity: {condition}");
    let answer = lab.ask("demo/missing-identity", VAULT)?;
    ensure!(answer.status >= 400 && !answer.field("error").is_empty(), "{answer:?}");
    Ok(())
}

/// Waits for a condition in the state directory and returns its message.
fn wait_for_condition(lab: &Lab, kind: &str, name: &str, type_: &str, status: &str) -> anyhow::Result<String> {
    let mut last = String::new();
    let message = clock::wait_for(Duration::from_secs(20), || {
        let Some(path) = find_status(lab.run_dir(), kind, name) else { return Ok(None) };
        last = std::fs::read_to_string(path).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&last).unwrap_or_default();
        let conditions = value.pointer("/status/conditions").or_else(|| value.get("conditions"));
        let found = conditions
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == type_ && condition["status"] == status);
        Ok(found.map(|condition| condition["message"].as_str().unwrap_or_default().to_owned()))
    })?;
    message.with_context(|| format!("{kind} demo/{name} has no condition {type_}={status}; its status: {last}"))
}

/// `…/status/KIND/demo/NAME.json`, the kind written in whatever case.
fn find_status(directory: &Path, kind: &str, name: &str) -> Option<std::path::PathBuf> {
    let wanted = format!("/{}/demo/{name}.json", kind.to_lowercase());
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).ok().into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if path.to_string_lossy().contains("/status/")
                && path.to_string_lossy().to_lowercase().ends_with(&wanted)
            {
                return Some(path);
            }
        }
    }
    None
}

fn missing_secret(lab: &Lab) -> anyhow::Result<()> {
    let more = "  clientPassword: {name: no-such-secret, namespace: demo}\n";
    lab.write("missing-secret.yaml", &identity("missing-secret", 1, "bbbbbbbb-0000-4000-8000-000000000002", more))?;
    refused_with(lab, "demo/missing-secret", &["no-such-secret"]).map(drop)
}

fn missing_key(lab: &Lab) -> anyhow::Result<()> {
    let secret = credentials::secret("has-other-keys", &[("something", b"x"), ("else", b"y")]);
    let more = "  clientPassword: {name: has-other-keys, namespace: demo, key: wanted-key}\n";
    let identity = identity("missing-key", 1, "bbbbbbbb-0000-4000-8000-000000000003", more);
    lab.write("missing-key.yaml", &format!("{secret}---\n{identity}"))?;
    refused_with(lab, "demo/missing-key", &["has-other-keys", "wanted-key"]).map(drop)
}

fn unreadable_archive(lab: &Lab) -> anyhow::Result<()> {
    let secret = credentials::secret("unreadable", &[("certificate", b"this is no archive"), ("password", b"x")]);
    let more = "  clientPassword: {name: unreadable, namespace: demo}\n";
    let identity = identity("unreadable", 2, "bbbbbbbb-0000-4000-8000-000000000004", more);
    lab.write("unreadable.yaml", &format!("{secret}---\n{identity}"))?;
    refused_with(lab, "demo/unreadable", &["PKCS#12", "unreadable"]).map(drop)
}

fn wrong_password(lab: &Lab) -> anyhow::Result<()> {
    let archive = credentials::pkcs12("the-right-one")?;
    let secret =
        credentials::secret("wrong-password", &[("certificate", &archive), ("password", WRONG_PASSWORD.as_bytes())]);
    let more = "  clientPassword: {name: wrong-password, namespace: demo}\n";
    let identity = identity("wrong-password", 2, "bbbbbbbb-0000-4000-8000-000000000005", more);
    lab.write("wrong-password.yaml", &format!("{secret}---\n{identity}"))?;
    refused_with(lab, "demo/wrong-password", &["password"]).map(drop)
}

fn refused_by_entra(lab: &Lab) -> anyhow::Result<()> {
    let secret = credentials::secret("refused", &[("clientSecret", WRONG_SECRET.as_bytes())]);
    let more = "  clientPassword: {name: refused, namespace: demo}\n";
    let identity = identity("refused", 1, "bbbbbbbb-0000-4000-8000-000000000006", more);
    lab.write("refused.yaml", &format!("{secret}---\n{identity}"))?;
    refused_with(lab, "demo/refused", &["AADSTS7000215"])?;
    lab.wait_for_log("AADSTS7000215", Duration::from_secs(10))?;
    Ok(())
}

fn authority_outside(lab: &Lab) -> anyhow::Result<()> {
    let secret = credentials::secret("outside", &[("clientSecret", WRONG_SECRET.as_bytes())]);
    let more = "  clientPassword: {name: outside, namespace: demo}\n  adEndpoint: https://login.attacker.example/\n";
    let identity = identity("outside", 1, "bbbbbbbb-0000-4000-8000-000000000007", more);
    lab.write("outside.yaml", &format!("{secret}---\n{identity}"))?;
    refused_with(lab, "demo/outside", &["login.attacker.example"]).map(drop)
}

fn address_of(lab: &Lab, pod: &str) -> anyhow::Result<String> {
    let text = lab.inside(pod, &["ip", "-4", "-o", "address", "show", "scope", "global"]).text()?;
    let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).context("no address")?;
    Ok(address.to_owned())
}

fn two_pods_one_address(lab: &Lab) -> anyhow::Result<()> {
    let address = address_of(lab, "demo/certificate")?;
    let address = address.split('/').next().unwrap_or_default();
    let status = format!("status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}");
    lab.write("twin.yaml", &pod("twin", "", &status))?;
    let answer = clock::wait_for(Duration::from_secs(20), || {
        let answer = lab.ask("demo/certificate", VAULT)?;
        Ok((answer.status != 200).then_some(answer))
    })?
    .context("the address of two pods is served")?;
    ensure!(answer.status == 503 && answer.field("access_token").is_empty(), "{answer:?}");
    std::fs::remove_file(lab.manifests().join("twin.yaml")).context("cannot remove the file")?;
    clock::wait_for(Duration::from_secs(20), || Ok((lab.ask("demo/certificate", VAULT)?.status == 200).then_some(())))?
        .context("the pod is not served again when it has its address alone")
}

fn unknown_address(lab: &Lab) -> anyhow::Result<()> {
    lab.write("early-binding.yaml", &binding("early", "app-secret"))?;
    let answer = lab.ask("demo/early", VAULT)?;
    ensure!(answer.status == 503 && answer.field("access_token").is_empty(), "{answer:?}");
    ensure!(!answer.field("error").is_empty(), "not the endpoint's error shape: {}", answer.body);
    Ok(())
}

/// Lets an object with the address of `demo/certificate` appear; what that pod is answered then.
fn beside_certificate(lab: &Lab, name: &str, spec: &str, phase: &str) -> anyhow::Result<()> {
    let address = address_of(lab, "demo/certificate")?;
    let address = address.split('/').next().unwrap_or_default();
    let status = format!("status: {{phase: {phase}, podIP: {address}, podIPs: [{{ip: {address}}}]}}");
    lab.write(&format!("{name}.yaml"), &format!("{}---\n{}", pod(name, spec, &status), binding(name, "app-secret")))
}

/// Its address has been given to another pod, as happens at once on a busy node: that one is served, as itself.
fn finished_pod(lab: &Lab) -> anyhow::Result<()> {
    let answer = lab.ask("demo/certificate", VAULT)?;
    ensure!(answer.claims()?.appid == EXPECTED[2].application, "{answer:?}");
    beside_certificate(lab, "over", "", "Running")?;
    // Both run: ambiguous. That it is seen proves that the next step is about the phase and nothing else.
    clock::wait_for(Duration::from_secs(20), || Ok((lab.ask("demo/certificate", VAULT)?.status == 503).then_some(())))?
        .context("the address of two running pods is served")?;
    beside_certificate(lab, "over", "", "Succeeded")?;
    let answer = clock::wait_for(Duration::from_secs(20), || {
        let answer = lab.ask("demo/certificate", VAULT)?;
        Ok((answer.status != 503).then_some(answer))
    })?
    .context("a finished pod keeps its address")?;
    ensure!(answer.claims()?.appid == EXPECTED[2].application, "the finished pod's identity is served: {answer:?}");
    std::fs::remove_file(lab.manifests().join("over.yaml")).context("cannot remove the file")
}

/// Whoever asks from an address that a host-network pod has is refused, as such.
fn host_network_pod(lab: &Lab) -> anyhow::Result<()> {
    beside_certificate(lab, "hostnet", "  hostNetwork: true\n", "Running")?;
    let answer = clock::wait_for(Duration::from_secs(20), || {
        let answer = lab.ask("demo/certificate", VAULT)?;
        Ok((answer.status != 200).then_some(answer))
    })?
    .context("an address of the host's network is served")?;
    ensure!(answer.status == 403 && answer.field("error") == "access_denied", "{answer:?}");
    ensure!(answer.field("error_description").contains("host"), "{answer:?}");
    std::fs::remove_file(lab.manifests().join("hostnet.yaml")).context("cannot remove the file")?;
    clock::wait_for(Duration::from_secs(20), || Ok((lab.ask("demo/certificate", VAULT)?.status == 200).then_some(())))?
        .context("the pod is not served again")
}

fn node_address(lab: &Lab) -> anyhow::Result<String> {
    let route = lab.inside("demo/app", &["ip", "-4", "route", "show", "default"]).text()?;
    Ok(route.split_whitespace().skip_while(|word| *word != "via").nth(1).context("no default route")?.to_owned())
}

fn direct_connection(lab: &Lab) -> anyhow::Result<()> {
    let node = node_address(lab)?;
    let url = format!("http://{node}:2579/metadata/identity/oauth2/token?api-version=2018-02-01&{VAULT}");
    match lab.curl("demo/app", &["-H", "Metadata: true", &url]) {
        Ok(answer) => ensure!(answer.status == 403 && answer.field("access_token").is_empty(), "{answer:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("Empty reply") || text.contains("reset"), "{text}");
        }
    }
    Ok(())
}

/// Sends bytes to the metadata endpoint from `demo/app`, ends its side, and returns what comes back.
fn raw(lab: &Lab, script: &str) -> anyhow::Result<String> {
    let program = format!(
        "import socket\ns = socket.create_connection(('169.254.169.254', 80), 10)\ns.settimeout(20)\n{script}\n\
         out = b''\ntry:\n    while True:\n        part = s.recv(65536)\n        if not part: break\n        out += part\nexcept ConnectionError:\n    pass\n\
         print(out.decode('latin-1'))"
    );
    lab.inside("demo/app", &["python3", "-c", &program]).text()
}

fn truncated_request(lab: &Lab) -> anyhow::Result<()> {
    let answer = raw(lab, "s.sendall(b'GET /metadata/identity/oau')\ns.shutdown(socket.SHUT_WR)")?;
    // Half a request has no answer, or is said to be wrong.
    ensure!(answer.trim().is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    Ok(())
}

fn oversized_request(lab: &Lab) -> anyhow::Result<()> {
    let script = "try:\n    s.sendall(b'GET /metadata/identity/oauth2/token?x=' + b'a' * 1000000 + b' HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n')\nexcept ConnectionError:\n    pass";
    let answer = raw(lab, script)?;
    let status = answer.split_whitespace().nth(1).unwrap_or_default().to_owned();
    // The server may have closed before all was sent, and the answer be lost with the connection.
    ensure!(["", "400", "414", "431"].contains(&status.as_str()), "{answer}");
    // Larger than the limit, but sent in one go: this answer arrives.
    let script =
        "s.sendall(b'GET /metadata/identity/oauth2/token?x=' + b'a' * 30000 + b' HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n')";
    let answer = raw(lab, script)?;
    let status = answer.split_whitespace().nth(1).unwrap_or_default().to_owned();
    ensure!(["400", "414", "431"].contains(&status.as_str()), "{answer}");
    Ok(())
}

fn no_secret_in_logs(lab: &Lab) -> anyhow::Result<()> {
    let log = lab.log();
    for secret in [WRONG_SECRET, WRONG_PASSWORD] {
        ensure!(!log.contains(secret), "a log has {secret}");
    }
    ensure!(!log.contains("eyJ"), "a log has what looks like a token");
    Ok(())
}
