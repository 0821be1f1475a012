//! The lab with a real API server, without the product's binaries: the API server is the issuer that the emulated Entra trusts.
//! Needs root (or user namespaces) and the Kubernetes binaries.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};

const BROKER: &str = "22222222-2222-2222-2222-222222222222";
const POD: &str = "33333333-3333-3333-3333-333333333333";
const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: team}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: broker, namespace: team}
spec: {type: 3, clientID: 22222222-2222-2222-2222-222222222222, tenantID: 11111111-1111-1111-1111-111111111111}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: pod, namespace: team}
spec:
  type: 3
  clientID: 33333333-3333-3333-3333-333333333333
  tenantID: 11111111-1111-1111-1111-111111111111
  federated: {subject: Pod}
";

struct Lab(tempfile::TempDir);

impl Lab {
    fn root(&self) -> PathBuf {
        self.0.path().join("lab")
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_identity-lab"));
        command.args(arguments).env("IDENTITY_LAB_DIR", self.root()).output().unwrap()
    }

    /// Asks the emulated Entra for a token with an assertion; the answer with its status.
    fn assert(&self, client: &str, token: &str) -> String {
        let ca = self.root().join("ca.crt").display().to_string();
        let fields = [
            format!("client_id={client}"),
            "grant_type=client_credentials".to_owned(),
            "scope=https://vault.azure.net/.default".to_owned(),
            "client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned(),
            format!("client_assertion={token}"),
        ];
        let mut line =
            vec!["exec", "team/a", "--", "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", &ca];
        line.extend(["-w", "\\n%{http_code}"]);
        for field in &fields {
            line.extend(["--data-urlencode", field]);
        }
        let url = format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token");
        line.push(&url);
        text(&self.run(&line))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn claims(token: &str) -> serde_json::Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// A token of the pod's service account for `audience`, as the product requests it.
async fn requested(kubeconfig: &Path, audience: &str) -> String {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(Client::try_from(config).unwrap(), "team");
    let spec = TokenRequestSpec { audiences: Some(vec![audience.to_owned()]), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token.unwrap()
}

#[test]
fn entra_trusts_the_api_server_as_an_issuer() {
    let lab = Lab(tempfile::Builder::new().prefix("epi-lab-kube-").tempdir().unwrap());
    let manifests = lab.0.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("all.yaml"), MANIFESTS).unwrap();
    // The emulators' clock is elsewhere; the API server's is the machine's, and so are its tokens'.
    let clock = ["--clock", "2036-01-01T00:00:00Z"];
    let up = ["up", "--kube", "--no-binaries", "--manifests", manifests.to_str().unwrap()];
    let output = lab.run(&[&up[..], &clock].concat());
    assert!(output.status.success(), "{}", text(&output));

    let token = fs::read_to_string(lab.root().join("projected/token")).unwrap();
    let claims_of = claims(&token);
    assert_eq!(claims_of["iss"], identity_lab::kube::SERVICE_ACCOUNT_ISSUER);
    assert_eq!(claims_of["aud"], serde_json::json!(["api://AzureADTokenExchange"]));
    let answer = lab.assert(BROKER, &token);
    assert!(answer.contains("access_token") && answer.ends_with("200"), "{answer}");
    let answer = lab.assert(POD, &token);
    assert!(answer.contains("AADSTS700213") && answer.ends_with("401"), "{answer}");

    let record: serde_json::Value = serde_json::from_slice(&fs::read(lab.root().join("lab.json")).unwrap()).unwrap();
    let kubeconfig = PathBuf::from(record["kubeconfig"].as_str().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(requested(&kubeconfig, "api://AzureADTokenExchange"));
    let answer = lab.assert(POD, &token);
    assert!(answer.ends_with("200"), "{answer}");
    let token = runtime.block_on(requested(&kubeconfig, "https://kubernetes.default.svc"));
    let answer = lab.assert(POD, &token);
    assert!(answer.contains("AADSTS700212"), "{answer}");
}
