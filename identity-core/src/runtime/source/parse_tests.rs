//! What a person is told about a manifest: every mistake in one place, with what is wrong and where.

use proptest::prelude::*;

use super::*;

macro_rules! snapshot {
    ($text:expr) => {
        insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!($text) })
    };
}

const MANIFESTS: &[Kind] = &[Kind::Pod, Kind::Secret, Kind::Identity, Kind::Binding, Kind::Exception];

const IDENTITY: &str = "apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: good}
spec: {type: 0}
";

/// The objects and problems of a file as text.
fn told(file: &str, text: &str) -> String {
    let parsed = parse(Path::new(file), text, MANIFESTS);
    let objects = parsed.objects.iter().map(|o| format!("+ {} (line {})", o.key, o.place.line));
    let problems = parsed.problems.iter().map(|problem| format!("! {problem}"));
    objects.chain(problems).collect::<Vec<_>>().join("\n")
}

fn all(cases: &[(&str, &str, &str)]) -> String {
    cases.iter().map(|(what, file, text)| format!("# {what}\n{}\n", told(file, text))).collect::<Vec<_>>().join("\n")
}

#[test]
fn documents_are_read_each_on_its_own() {
    let broken_second = format!("{IDENTITY}---\nkind: [\n---\n{}", IDENTITY.replace("good", "after"));
    let list = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a, namespace: team}
- apiVersion: aadpodidentity.k8s.io/v1
  kind: AzureIdentity
  metadata: {name: b}
  spec: {tpye: 1}
- 7
- apiVersion: aadpodidentity.k8s.io/v1
  kind: AzureIdentity
  metadata: {name: c}
  spec: {type: one}
";
    let crlf = format!("# a comment\n---\n{IDENTITY}--- # another\n{}", IDENTITY.replace("good", "other"))
        .replace('\n', "\r\n");
    let nested = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \
                  \"items\": [\n{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"deep\"}}]}]}";
    snapshot!(all(&[
        ("empty", "a.yaml", ""),
        ("comments only", "a.yaml", "# nothing\n\n---\n# here\n---\n"),
        ("one broken document", "a.yaml", &broken_second),
        ("a list", "a.yaml", list),
        ("a list in a list, as JSON", "a.json", nested),
        ("line ends of Windows, separators with comments, a byte order mark", "a.yaml", &format!("\u{feff}{crlf}")),
        ("directives", "a.yaml", &format!("%YAML 1.2\n---\n{IDENTITY}...\n---\n{}", IDENTITY.replace("good", "b"))),
        (
            "separator within a text",
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    x: |\n      ---\n      y\n"
        ),
        (
            "kinds of others",
            "a.yaml",
            "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: example.com/v1\nkind: Pod\n"
        ),
        ("twice", "a.yaml", &format!("{IDENTITY}---\n{IDENTITY}")),
        (
            "an exception",
            "a.yaml",
            "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzurePodIdentityException\nmetadata: {name: e}\nspec: {podLabels: {a: b}}\n"
        ),
    ]));
}

#[test]
fn mistakes_have_a_place_and_words() {
    let spec = |spec: &str| format!("{}spec:\n  {spec}\n", IDENTITY.split("spec").next().unwrap());
    snapshot!(all(&[
        ("not closed", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a\n"),
        ("indentation", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n namespace: b\n"),
        ("tab", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n"),
        ("quote", "a.yaml", "apiVersion: v1\nkind: \"Pod\nmetadata:\n  name: a\n"),
        ("colon", "a.yaml", "apiVersion: v1\nkind: Pod: x\n"),
        ("key twice", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  name: b\n"),
        ("anchor", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: *x\n"),
        ("text", "a.yaml", "hello\n"),
        ("list", "a.yaml", "- 1\n"),
        ("no kind", "a.yaml", "\n\napiVersion: v1\n"),
        ("kind is a number", "a.yaml", "apiVersion: v1\nkind: 1\n"),
        (
            "unknown kind",
            "a.yaml",
            "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentities\nmetadata: {name: a}\n"
        ),
        ("old version", "a.yaml", &IDENTITY.replace("io/v1", "io/v1beta1")),
        ("no version", "a.yaml", &IDENTITY.replace("io/v1", "io")),
        ("other group", "a.yaml", &IDENTITY.replace("aadpodidentity.k8s.io", "example.com")),
        ("pod version", "a.yaml", "apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n"),
        ("no metadata", "a.yaml", "apiVersion: v1\nkind: Pod\n"),
        ("no name", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: a\n"),
        ("empty name", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: ''}\n"),
        ("bad name", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: team\n  name: ../../etc\n"),
        ("bad namespace", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: A\n"),
        ("unknown field", "a.yaml", &spec("clientPassword:\n    Name: x")),
        ("unknown field at the top", "a.yaml", &IDENTITY.replace("spec", "sepc")),
        ("two unknown fields", "a.yaml", &spec("typ: 1\n  colour: blue")),
        ("text for a number", "a.yaml", &spec("type: \"first\"")),
        ("text for an object", "a.yaml", &spec("type: 1\n  clientPassword: hunter2")),
        ("number for an object", "a.yaml", &spec("clientPassword: 4711")),
        ("object for a text", "a.yaml", &spec("clientID: {a: b}")),
        ("number for a text", "a.yaml", &spec("clientID: 5")),
        ("fraction", "a.yaml", &spec("type: 1.5")),
        ("spec missing", "a.yaml", IDENTITY.split("spec").next().unwrap()),
        (
            "assignment",
            "a.yaml",
            "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureAssignedIdentity\nmetadata: {name: a}\n"
        ),
        ("labels", "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {a: {b: c}}\n"),
    ]));
}

#[test]
fn json_has_places_too() {
    snapshot!(all(&[
        ("good", "a.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#),
        (
            "emoji and slashes as JSON writes them",
            "a.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": {"x": "\ud83d\ude00 \/"}}}"#
        ),
        ("cut short", "a.json", "{\n  \"kind\": \"Pod\","),
        ("comma", "a.json", "{\n  \"kind\": \"Pod\",\n}"),
        ("YAML", "a.json", "kind: Pod\n"),
        ("two", "a.json", "{}\n{}"),
        (
            "key twice",
            "a.json",
            "{\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"a\", \"name\": \"b\"}}"
        ),
        (
            "unknown field",
            "a.json",
            "{\"apiVersion\": \"aadpodidentity.k8s.io/v1\", \"kind\": \"AzureIdentity\",\n\"metadata\": {\"name\": \"a\"},\n\"spec\": {\"clientId\": \"x\"}}"
        ),
        (
            "wrong type",
            "a.json",
            "{\"apiVersion\": \"aadpodidentity.k8s.io/v1\", \"kind\": \"AzureIdentity\",\n\"metadata\": {\"name\": \"a\"},\n\"spec\": {\"clientPassword\": \"hunter2\"}}"
        ),
    ]));
}

const SECRET: &str = "apiVersion: v1
kind: Secret
metadata: {name: sp, namespace: team}
stringData:
  ";

#[test]
fn secrets_say_nothing_of_their_values() {
    let secret = |data: &str| format!("{SECRET}{data}\n");
    let text = all(&[
        ("plain", "a.yaml", &secret("clientsecret: hunter2")),
        ("number", "a.yaml", &secret("clientsecret: 271828")),
        ("truth value", "a.yaml", &secret("clientsecret: true")),
        ("object", "a.yaml", &secret("clientsecret: {a: hunter2}")),
        (
            "text",
            "a.yaml",
            &secret("clientsecret: a\n").replace("stringData:\n  clientsecret: a", "stringData: hunter2"),
        ),
        ("quote", "a.yaml", &secret("clientsecret: \"hunter2")),
        ("trailing", "a.yaml", &secret("clientsecret: \"\" hunter2")),
        ("colon", "a.yaml", &secret("clientsecret: hunter2: x")),
        ("percent", "a.yaml", &secret("clientsecret: %hunter2")),
        ("at", "a.yaml", &secret("clientsecret: @hunter2")),
        ("alias", "a.yaml", &secret("clientsecret: *hunter2")),
        ("tag", "a.yaml", &secret("clientsecret: !!hunter2 x")),
        ("tag handle", "a.yaml", &secret("clientsecret: !hunter2!x y")),
        ("key twice", "a.yaml", &secret("hunter2: a\n  hunter2: b")),
        ("escape", "a.yaml", &secret("clientsecret: \"\\hunter2\"")),
        ("base64 broken", "a.yaml", &secret("clientsecret: hunter2").replace("stringData", "data")),
        ("base64 in lines", "a.yaml", &secret("clientsecret: |\n    aHVud\n    GVyMg==").replace("stringData", "data")),
        ("JSON broken", "a.json", "{\"kind\": \"Secret\", \"stringData\": {\"a\": \"hunter2\" hunter2}}"),
        (
            "JSON number",
            "a.json",
            "{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"a\"}, \"stringData\": {\"a\": 271828}}",
        ),
    ]);
    assert!(!text.contains("hunter2") && !text.contains("hunter") && !text.contains("271828"), "{text}");
    snapshot!(text);
}

#[test]
fn secrets_have_the_values_that_an_api_server_would_have() {
    let text = "apiVersion: v1
kind: Secret
metadata: {name: sp}
data: {a: aHVudGVyMg==, b: b3RoZXI=, empty: '', nothing: ~}
stringData: {b: wins, \"quoted\": \"1\"}
";
    let parsed = parse(Path::new("a.yaml"), text, MANIFESTS);
    assert_eq!(parsed.problems, []);
    let mut wanted = SecretData::new();
    for (key, value) in [("a", "hunter2"), ("b", "wins"), ("empty", ""), ("nothing", ""), ("quoted", "1")] {
        wanted.insert(key.into(), SecretBytes::from(value.as_bytes().to_vec()));
    }
    assert_eq!(*parsed.objects[0].object, Object::Secret(Arc::new(wanted)));
    assert_eq!(parsed.objects[0].key.to_string(), "Secret default/sp");
}

#[test]
fn objects_get_what_an_api_server_would_give_them() {
    let text = IDENTITY.replace(
        "{name: good}",
        "{name: good, annotations: {kubectl.kubernetes.io/last-applied-configuration: x, a: b}}",
    );
    let uid = |text: &str| {
        let parsed = parse(Path::new("a.yaml"), text, MANIFESTS);
        let Object::Identity(identity) = &*parsed.objects[0].object else { panic!("{parsed:?}") };
        assert_eq!(identity.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(identity.metadata.annotations.iter().flatten().count(), usize::from(text.contains("a: b")));
        identity.metadata.uid.clone().unwrap()
    };
    let derived = uid(&text);
    assert_eq!(derived.len(), 36);
    assert_eq!(derived, uid(IDENTITY), "the same object has the same UID, whatever else changes");
    assert_ne!(derived, uid(&IDENTITY.replace("good", "other")));
    assert_eq!(uid(&IDENTITY.replace("{name: good}", "{name: good, uid: mine}")), "mine");
}

#[test]
fn only_assignments_belong_into_their_directory() {
    let text = "apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: {name: a, namespace: team, uid: u, resourceVersion: '7', labels: {nodename: n}}
spec: {pod: p, podNamespace: team, nodename: n, podUID: u}
status: {status: Assigned}
";
    let state = |text: &str| parse(Path::new("a.json.yaml"), text, &[Kind::Assigned]);
    let parsed = state(text);
    assert_eq!(parsed.problems, []);
    let Object::Assigned(assigned) = &*parsed.objects[0].object else { panic!() };
    assert_eq!(assigned.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(
        state(IDENTITY).problems[0].to_string(),
        "a.json.yaml:1:1: AzureIdentity default/good: passed over: only assignments belong here"
    );
}

#[test]
fn bombs_are_refused() {
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\na0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 0..9 {
        use std::fmt::Write as _;
        writeln!(text, "a{}: &a{} [{}]", i + 1, i + 1, vec![format!("*a{i}"); 9].join(", ")).unwrap();
    }
    snapshot!(told("a.yaml", &text));
    let deep = format!("a: {}", "[".repeat(100_000));
    snapshot!(told("a.yaml", &deep));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// However a manifest is broken, nothing that is told about it quotes the password in it.
    #[test]
    fn no_problem_quotes_a_value(
        cut in proptest::option::of(0_usize..200),
        inserts in proptest::collection::vec((0_usize..250, "[-:{}\\[\\],&*#?|><%@`\"'! \n\t\\\\a1]"), 0..4),
        json: bool,
    ) {
        let mut text = if json {
            r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"a": "QZXWVJ", "b": "c"}}"#.to_owned()
        } else {
            format!("{SECRET}clientsecret: QZXWVJ\n  other: c\n---\n{IDENTITY}")
        };
        for (at, what) in inserts {
            let at = at % (text.len() + 1);
            if !text[..at].ends_with(['Q', 'Z', 'X', 'W', 'V']) {
                text.insert_str(at, &what);
            }
        }
        if let Some(cut) = cut {
            text.truncate(cut);
        }
        for file in ["a.yaml", "a.json"] {
            for problem in parse(Path::new(file), &text, MANIFESTS).problems {
                prop_assert!(!problem.message.contains("QZXWVJ"), "{problem}\n{text}");
                // Neither in part.
                prop_assert!(!problem.message.contains("ZXWV"), "{problem}\n{text}");
            }
        }
    }
}
