use serde_json::json;

use super::*;
use crate::{
    emulator::{credentials, vaults::Role},
    manifest,
};

const CLIENT: &str = "22222222-2222-2222-2222-222222222222";
const OTHER: &str = "33333333-3333-3333-3333-333333333333";
const RESOURCE: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/u";

fn objects(text: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for document in manifest::documents(text) {
        manifest::flatten(document.value.unwrap(), &mut all);
    }
    all
}

fn world() -> World {
    World::new(Issuer { issuer: "https://issuer.example".to_owned(), jwks: None, server: None })
}

fn seeded(text: &str) -> Seed {
    seed(&objects(text), &Overrides::default(), &mut world())
}

fn application(kind: u8, key: &str) -> String {
    format!(
        "kind: AzureIdentity\nmetadata: {{name: i, namespace: team}}\nspec: {{type: {kind}, clientID: {CLIENT}, tenantID: {OTHER}, \
         clientPassword: {{name: s{key}}}}}\n---\n"
    )
}

#[test]
fn managed_identities_are_on_the_vm() {
    let identity =
        |name: &str, spec: &str| format!("kind: AzureIdentity\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n");
    let seed = seeded(
        &(identity("a", &format!("resourceID: {RESOURCE}, clientID: {CLIENT}"))
            + &identity("b", &format!("type: 0, resourceID: {RESOURCE}2"))
            + &identity("same", &format!("type: 0, resourceID: {}", RESOURCE.to_uppercase()))
            + &identity("bad", "type: 0")),
    );
    let identities = &seed.directory.managed_identities;
    assert_eq!(identities.len(), 2);
    assert_eq!((identities[0].client_id.as_str(), identities[0].tenant_id.as_str()), (CLIENT, TENANT));
    assert!(is_guid(&identities[1].client_id), "a client id that the manifest leaves out is made up");
    assert_eq!(seed.warnings.len(), 1, "{:?}", seed.warnings);
}

#[test]
fn a_client_secret_is_found_as_the_product_must_find_it() {
    for (key, secret, expected) in [
        ("", "stringData: {anything: hush}", Some("hush")),
        ("", "data: {clientSecret: aHVzaA==, other: eA==}", Some("hush")),
        (", key: mine", "stringData: {mine: hush, clientSecret: other}", Some("hush")),
        ("", "data: {a: aHVzaA==, b: eA==}", None),
        (", key: none", "stringData: {clientSecret: hush}", None),
        ("", "data: {clientSecret: '!'}", None),
        ("", "stringData: {clientSecret: ''}", None),
        ("", "data: {clientSecret: IAo=}", None),
    ] {
        let seed =
            seeded(&format!("{}kind: Secret\nmetadata: {{name: s, namespace: team}}\n{secret}\n", application(1, key)));
        let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
        let found = tenant.applications[0].secrets.first().map(|secret| secret.value.expose());
        assert_eq!(found, expected, "{key} {secret}");
        assert_eq!(seed.warnings.is_empty(), expected.is_some(), "{:?}", seed.warnings);
    }
}

#[test]
fn a_certificate_is_read_from_pkcs12_and_from_pem() {
    let made = credentials::self_signed_rsa("demo").unwrap();
    let p12 = base64::engine::general_purpose::STANDARD.encode(credentials::pkcs12(&made, "pw").unwrap());
    let pem = json!(format!("{}{}", made.key_pem, made.certificate_pem));
    for (secret, expected) in [
        (format!("data: {{certificate: {p12}, password: cHc=}}"), true),
        (format!("data: {{certificate: {p12}, password: eA==}}"), false),
        (format!("stringData: {{certificate: {pem}}}"), true),
        ("stringData: {certificate: rubbish}".to_owned(), false),
        ("stringData: {other: x}".to_owned(), false),
    ] {
        let seed =
            seeded(&format!("{}kind: Secret\nmetadata: {{name: s, namespace: team}}\n{secret}\n", application(2, "")));
        let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
        assert_eq!(tenant.applications[0].certificates.len(), usize::from(expected), "{:?}", seed.warnings);
        assert_eq!(seed.warnings.is_empty(), expected);
    }
}

#[test]
fn lab_yaml_has_the_last_word() {
    let overrides = Overrides::parse(&format!(
        "tenants: [{{id: {OTHER}, applications: [{{clientId: {CLIENT}, secrets: [{{value: changed}}]}}]}}]\nabsent: ['{RESOURCE}']\nimds: {{latencyMs: 5, limits: {{concurrent: null}}}}\nfaults: [imds-429]\n"
    ))
    .unwrap();
    let text = format!(
        "{}kind: Secret\nmetadata: {{name: s, namespace: team}}\nstringData: {{a: b}}\n---\nkind: AzureIdentity\nmetadata: {{name: m}}\nspec: {{resourceID: {RESOURCE}}}\n",
        application(1, "")
    );
    let seed = seed(&objects(&text), &overrides, &mut world());
    let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
    assert_eq!(tenant.applications.len(), 1);
    assert_eq!(tenant.applications[0].secrets[0].value.expose(), "changed");
    assert!(seed.directory.managed_identities.is_empty());
    assert!(Overrides::parse("tenant: x\nlatency: 3\n").unwrap_err().contains("latency"));
    assert!(Overrides::parse("# nothing\n").unwrap().faults.is_empty());
}

#[test]
fn nonsense_is_skipped_with_a_warning() {
    let seed = seeded(
        "kind: AzureIdentity\nmetadata: {name: a}\nspec: {type: 7}\n---\nkind: AzureIdentity\nmetadata: {name: b}\nspec: {type: 1}\n---\n\
         kind: AzureIdentity\n---\nkind: AzureIdentity\nmetadata: {name: d}\nspec: {clientID: nope, resourceID: x}\n---\nkind: Secret\n---\njust text\n",
    );
    assert_eq!(seed.warnings.len(), 4, "{:?}", seed.warnings);
    assert!(seed.directory.managed_identities.is_empty());
}

#[test]
fn federation_trusts_the_node_or_the_pods() {
    let identity = |subject: &str| {
        format!(
            "kind: AzureIdentity\nmetadata: {{name: i, namespace: team}}\nspec: {{type: 3, clientID: {CLIENT}, tenantID: {OTHER}{subject}}}\n---\n"
        )
    };
    let federated = |text: &str| seeded(text).directory.tenants[1].applications[0].federated_credentials.clone();
    let node = federated(&identity(""));
    assert_eq!(node.len(), 1);
    assert_eq!(node[0].subject, "system:serviceaccount:entra-pod-identity:entra-pod-identity-node");
    assert_eq!((node[0].issuer.as_str(), node[0].audience.as_str()), ("https://issuer.example", TOKEN_EXCHANGE));
    let government = federated(&identity(", adEndpoint: 'https://login.microsoftonline.us/'"));
    assert_eq!(government[0].audience, "api://AzureADTokenExchangeUSGov");
    let pod = |name: usize, namespace: &str, account: &str| {
        format!("kind: Pod\nmetadata: {{name: p{name}, namespace: {namespace}}}\nspec: {{{account}}}\n---\n")
    };
    let pods = pod(1, "team", "") + &pod(2, "team", "serviceAccountName: worker") + &pod(3, "other", "");
    let subjects: Vec<_> = federated(&(pods + &identity(", federated: {subject: Pod, audience: mine}")))
        .into_iter()
        .map(|one| (one.subject, one.audience))
        .collect();
    let expected = ["default", "worker"].map(|name| (format!("system:serviceaccount:team:{name}"), "mine".to_owned()));
    assert_eq!(subjects, expected);
    let many: String = (0..25).map(|number| pod(number, "team", &format!("serviceAccountName: a{number}"))).collect();
    let seed = seeded(&(many + &identity(", federated: {subject: Pod}")));
    assert_eq!(seed.directory.tenants[1].applications[0].federated_credentials.len(), MOST_FEDERATED);
    assert_eq!(seed.warnings.len(), 1, "{:?}", seed.warnings);
}

/// The emulators take a directory whole or not at all.
#[test]
fn what_one_identity_has_wrong_keeps_no_other_from_being_seeded() {
    let good = application(1, "")
        .replace("name: i,", "name: good,")
        .replace("name: s}", "name: good}")
        .replace(CLIENT, TENANT)
        + "kind: Secret\nmetadata: {name: good, namespace: team}\nstringData: {a: hush}\n---\n";
    let tenant = |name: &str, client: u8| {
        format!(
            "kind: AzureIdentity\nmetadata: {{name: t{client}, namespace: team}}\nspec: {{type: 3, clientID: {CLIENT}, tenantID: {name}, \
             auxiliaryTenantIDs: ['', ' ']}}\n---\n"
        )
    };
    for (bad, expected) in [
        (
            application(1, "") + "kind: Secret\nmetadata: {name: s, namespace: team}\nstringData: {a: ''}\n---\n",
            "team/s: the secret is empty",
        ),
        (READER.to_owned() + &vaulted(1, "secretName: not_a_name"), "`not_a_name` is no name"),
        (READER.to_owned() + &vaulted(2, "certificateName: 'a b'"), "`a b` is no name"),
        (READER.to_owned() + &vaulted(1, "secretName: s").replace("Demo.vault", ".vault"), "is no vault's host"),
        // One tenant, by whatever name.
        (tenant("Contoso.example", 1) + &tenant("contoso.example", 2), ""),
        (tenant("fabrikam.example", 1) + &tenant("FABRIKAM.example", 2), ""),
    ] {
        let overrides =
            Overrides::parse("tenants: [{id: 99999999-9999-9999-9999-999999999999, domains: [fabrikam.example]}]\n")
                .unwrap();
        let seed = seed(&objects(&(bad.clone() + &good)), &overrides, &mut world());
        seed.directory.check().unwrap_or_else(|error| panic!("{bad}: {error}"));
        assert_eq!(seed.warnings.len(), usize::from(!expected.is_empty()), "{:?}", seed.warnings);
        assert!(seed.warnings.iter().all(|warning| warning.contains(expected)), "{expected}: {:?}", seed.warnings);
        let known = |id: &str| {
            let mut all = seed.directory.tenants.iter().flat_map(|tenant| &tenant.applications);
            all.find(|application| application.client_id == id).unwrap_or_else(|| panic!("{bad}: no {id}"))
        };
        assert_eq!(known(TENANT).secrets[0].value.expose(), "hush");
        assert!(known(CLIENT).secrets.is_empty(), "registered, so that Entra's answer is about the credential");
    }
}

const READER: &str =
    "kind: AzureIdentity\nmetadata: {name: reader, namespace: team}\nspec: {type: 0, resourceID: /reader}\n---\n";

fn vaulted(kind: u8, vault: &str) -> String {
    format!(
        "kind: AzureIdentity\nmetadata: {{name: i{kind}, namespace: team}}\nspec: {{type: {kind}, clientID: {CLIENT}, tenantID: {OTHER}, \
         keyVault: {{vaultURL: 'https://Demo.vault.azure.net/', identityRef: reader, {vault}}}}}\n---\n"
    )
}

#[test]
fn a_vault_holds_what_the_application_accepts() {
    let mut world = world();
    let text = READER.to_owned()
        + &vaulted(1, "secretName: s, version: 0123456789abcdef0123456789abcdef")
        + &vaulted(2, "certificateName: c")
        + &vaulted(2, "secretName: bundle").replace("name: i2", "name: i3");
    let seed = seed(&objects(&text), &Overrides::default(), &mut world);
    assert_eq!(seed.warnings, Vec::<String>::new());
    let [vault] = seed.directory.vaults.as_slice() else { panic!("one vault") };
    assert_eq!(
        (vault.host.as_str(), vault.tenant_id.as_str()),
        ("demo.vault.azure.net", TENANT),
        "the reader's tenant"
    );
    let application = &seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap().applications[0];
    let version = &vault.secrets[0].versions[0];
    assert_eq!(version.value.expose(), application.secrets[0].value.expose());
    assert_eq!(version.attributes.version.as_deref(), Some("0123456789abcdef0123456789abcdef"));
    let registered: Vec<String> = application.certificates.iter().map(|known| known.pem.load().unwrap()).collect();
    let certificate = &vault.certificates[0].versions[0];
    assert_eq!(certificate.certificate.load().unwrap(), registered[0]);
    let bundle = &vault.secrets[1].versions[0];
    assert_eq!(bundle.content_type.as_deref(), Some("application/x-pkcs12"));
    let file = base64::engine::general_purpose::STANDARD.decode(bundle.value.expose()).unwrap();
    let store = p12_keystore::KeyStore::from_pkcs12(&file, "").unwrap();
    let der = store.private_key_chain().unwrap().1.chain()[0].as_der().to_vec();
    assert!(registered[1].contains(&base64::engine::general_purpose::STANDARD.encode(&der)[..64]));
    let readers: Vec<_> = vault.access.iter().map(|given| (given.role, given.principal.as_str())).collect();
    assert_eq!(readers, [(Role::SecretsUser, "/reader"), (Role::CertificateUser, "/reader")]);

    let again = super::seed(&objects(&text), &Overrides::default(), &mut world);
    let json = |seed: &Seed| serde_json::to_string(&seed.directory).unwrap();
    assert_eq!(json(&again), json(&seed), "the same manifests, the same Azure");
}

#[test]
fn lab_yaml_overrides_vaults_and_groups() {
    let overrides = Overrides::parse(
        "groups: [{id: g, members: [m]}]\nvaults:\n- host: demo.vault.azure.net\n  tenantId: t\n  secrets: [{name: S, versions: [{value: mine}]}]\n\
         \x20 access: [{principal: g}]\n- {host: more.vault.azure.net, tenantId: t}\nclock: now\nprojectedToken: {lifetimeSeconds: 60}\n\
         entra: {refreshInSeconds: 5}\nkeyVault: {latencyMs: 1}\n",
    )
    .unwrap();
    let text = READER.to_owned() + &vaulted(1, "secretName: s") + &vaulted(2, "certificateName: c");
    let seed = seed(&objects(&text), &overrides, &mut world());
    let [demo, _more] = seed.directory.vaults.as_slice() else { panic!("two vaults") };
    assert_eq!((demo.secrets.len(), demo.certificates.len(), demo.access.len()), (1, 1, 1));
    assert_eq!(demo.secrets[0].versions[0].value.expose(), "mine");
    assert_eq!((demo.access[0].principal.as_str(), demo.access[0].role), ("g", Role::SecretsUser));
    assert_eq!(seed.directory.groups[0].members, ["m"]);
    assert_eq!(overrides.projected_token.audience, TOKEN_EXCHANGE);
}

#[test]
fn what_cannot_be_put_into_a_vault_is_said() {
    let swap = |text: &str, from: &str, to: &str| READER.to_owned() + &text.replace(from, to);
    let one = vaulted(1, "secretName: s");
    for (text, expected) in [
        (swap(&one, "https://Demo", "http://Demo"), "https URL"),
        (swap(&one, "azure.net/", "azure.net/secrets/s"), "more or less than a vault's host"),
        (swap(&one, "secretName: s", "certificateName: c"), "for type 2"),
        (swap(&one, "secretName: s", "version: v"), "one of secretName and certificateName"),
        (swap(&one, "identityRef: reader, ", ""), "identityRef is missing"),
        (swap(&one, "identityRef: reader", "identityRef: nobody"), "no AzureIdentity team/nobody"),
    ] {
        let seed = seeded(&text);
        assert!(seed.warnings.len() == 1 && seed.warnings[0].contains(expected), "{expected}: {:?}", seed.warnings);
        assert!(seed.directory.tenants[1].applications[0].secrets.is_empty(), "registered, without a credential");
    }
}
