//! What Debug output can give away (DESIGN invariant 8): every type of the product that can reach a secret is found in the
//! sources and must be in the list here, so that a new one is looked at. What derives `Debug` shows what its fields show; what
//! writes its own is shown by a test, with known secrets in it.

#![allow(clippy::unwrap_used, reason = "a source that cannot be read fails the test")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use syn::{Item, Type, visit::Visit};

/// Where the product's sources are.
const SOURCES: [&str; 8] = [
    "identity-crd/src",
    "identity-core/src",
    "identity-netfilter/src",
    "identity-broker/src",
    "bins/process/src",
    "bins/identity-node/src",
    "bins/identity-controller/src",
    "bins/identityctl/src",
];

/// Files of tests that are not called so.
const OF_TESTS: [&str; 2] = ["testing.rs", "model.rs"];

/// What holds a secret by its nature: the wrappers, and what libraries keep keys and secrets in.
const SEEDS: [&str; 10] = [
    "SecretString",
    "SecretSlice",
    "SecretBox",
    "Zeroizing",
    "EncodingKey",
    "PrivateKeyDer",
    "ClientSecret",
    "AccessToken",
    "ByteString",
    "KeyStore",
];

/// How a type is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debug {
    /// Not at all.
    None,
    /// Each field by its own.
    Derived,
    /// As its own `impl` says.
    Own,
}

/// A type of the product.
#[derive(Debug)]
struct Found {
    name: String,
    debug: Debug,
    /// Where it is, from the root of the workspace.
    file: String,
    /// The types that its fields name.
    fields: BTreeSet<String>,
}

/// The names in types.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl<'ast> Visit<'ast> for Names {
    fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
        self.0.insert(segment.ident.to_string());
        syn::visit::visit_path_segment(self, segment);
    }
}

fn names<'a>(types: impl Iterator<Item = &'a Type>) -> BTreeSet<String> {
    let mut names = Names::default();
    types.for_each(|one| names.visit_type(one));
    names.0
}

fn derives_debug(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|attribute| {
        let mut found = false;
        let _ = attribute.parse_nested_meta(|derived| {
            found |= derived.path.segments.last().is_some_and(|last| last.ident == "Debug");
            Ok(())
        });
        found
    })
}

/// The types of the product, tests left out.
#[derive(Default)]
struct Sources {
    types: Vec<Found>,
    /// File, and type and name of each field that is called like a secret and is plain text.
    plain: Vec<(String, String)>,
}

/// Words in the name of a field that holds a secret.
const CALLED: [&str; 9] =
    ["password", "secret", "token", "assertion", "bearer", "authorization", "private", "headers", "credential"];

/// Types that show what they hold.
const TEXTS: [&str; 10] =
    ["String", "str", "u8", "Bytes", "BytesMut", "Value", "HeaderValue", "HeaderMap", "Cow", "OsString"];

/// Whether a field is called like a secret and is plain text.
fn is_plain(field: &syn::Field) -> Option<String> {
    let name = field.ident.as_ref()?.to_string();
    let called = name.split('_').any(|word| CALLED.contains(&word));
    let names = names(std::iter::once(&field.ty));
    let plain = names.iter().any(|name| TEXTS.contains(&name.as_str()))
        && !names.iter().any(|name| SEEDS.contains(&name.as_str()));
    (called && plain).then_some(name)
}

impl Sources {
    fn items(&mut self, items: &[Item], file: &str) {
        let mut own = BTreeSet::new();
        let mut add = |ident: &syn::Ident, attributes: &[syn::Attribute], fields: BTreeSet<String>| {
            let debug = if derives_debug(attributes) { Debug::Derived } else { Debug::None };
            self.types.push(Found { name: ident.to_string(), debug, file: file.to_owned(), fields });
        };
        let mut modules = Vec::new();
        for item in items {
            match item {
                Item::Struct(one) => {
                    add(&one.ident, &one.attrs, names(one.fields.iter().map(|field| &field.ty)));
                    let plain = one.fields.iter().filter_map(is_plain);
                    self.plain.extend(plain.map(|name| (file.to_owned(), format!("{}.{name}", one.ident))));
                }
                Item::Enum(one) => {
                    let fields = one.variants.iter().flat_map(|variant| variant.fields.iter());
                    let plain = fields.clone().filter_map(is_plain);
                    self.plain.extend(plain.map(|name| (file.to_owned(), format!("{}.{name}", one.ident))));
                    add(&one.ident, &one.attrs, names(fields.map(|field| &field.ty)));
                }
                Item::Type(one) => add(&one.ident, &[], names(std::iter::once(&*one.ty))),
                Item::Mod(one) if !one.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) => {
                    modules.extend(one.content.iter().map(|(_, items)| items));
                }
                Item::Impl(one) => {
                    let of_debug = one.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
                    if of_debug.is_some_and(|last| last.ident == "Debug")
                        && let Type::Path(path) = &*one.self_ty
                    {
                        own.extend(path.path.segments.last().map(|last| last.ident.to_string()));
                    }
                }
                _ => {}
            }
        }
        for found in self.types.iter_mut().filter(|found| found.file == file && own.contains(&found.name)) {
            found.debug = Debug::Own;
        }
        for items in modules {
            self.items(items, file);
        }
    }

    /// The types that a name may mean in a file: those of the file, else of its folder, else of its crate, else all.
    fn meant(&self, name: &str, file: &str) -> Vec<usize> {
        let folder = |path: &str| path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let root = |path: &str| path.split_once("/src/").map_or("", |(root, _)| root).to_owned();
        let named: Vec<usize> = (0..self.types.len()).filter(|at| self.types[*at].name == name).collect();
        let within = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
            named.iter().copied().filter(|at| test(&self.types[*at].file)).collect()
        };
        let nearer = [
            within(&|other| other == file),
            within(&|other| folder(other) == folder(file)),
            within(&|other| root(other) == root(file)),
        ];
        nearer.into_iter().find(|found| !found.is_empty()).unwrap_or(named)
    }

    /// Those that can reach a secret.
    fn reaching(&self) -> Vec<&Found> {
        let mut reaching = vec![false; self.types.len()];
        loop {
            let reaches = |found: &Found| {
                found.fields.iter().any(|field| {
                    SEEDS.contains(&field.as_str()) || self.meant(field, &found.file).into_iter().any(|at| reaching[at])
                })
            };
            let more: Vec<usize> =
                (0..self.types.len()).filter(|at| !reaching[*at] && reaches(&self.types[*at])).collect();
            if more.is_empty() {
                return self.types.iter().zip(reaching).filter_map(|(found, yes)| yes.then_some(found)).collect();
            }
            for at in more {
                reaching[at] = true;
            }
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources() -> Sources {
    let root = root();
    let (mut sources, mut open) = (Sources::default(), SOURCES.map(str::to_owned).to_vec());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            let path = format!("{folder}/{name}");
            let rust = Path::new(&name).extension().is_some_and(|extension| extension == "rs");
            if root.join(&path).is_dir() {
                open.extend((name != "tests").then_some(path));
            } else if rust && !name.ends_with("tests.rs") && !OF_TESTS.contains(&name.as_str()) {
                let file = syn::parse_file(&std::fs::read_to_string(root.join(&path)).unwrap()).unwrap();
                sources.items(&file.items, &path);
            }
        }
    }
    sources
}

/// The types that reach a secret and can be formatted: file, name, how.
const LISTED: &[(&str, &str, Debug)] = &[
    ("bins/process/src/seams.rs", "FollowedSecrets", Debug::Derived),
    ("bins/process/src/seams.rs", "RequestedTokens", Debug::Derived),
    ("identity-broker/src/credentials/checker.rs", "Checker", Debug::Own),
    ("identity-broker/src/credentials/material.rs", "Credential", Debug::Own),
    ("identity-broker/src/credentials/source.rs", "Known", Debug::Derived),
    ("identity-broker/src/credentials/source.rs", "Loaded", Debug::Derived),
    ("identity-broker/src/credentials/store.rs", "Credentials", Debug::Own),
    ("identity-broker/src/federated/assertion.rs", "Assertion", Debug::Own),
    ("identity-broker/src/tokens/machine/entry.rs", "Entry", Debug::Derived),
    ("identity-broker/src/tokens/machine/entry.rs", "Held", Debug::Derived),
    ("identity-broker/src/tokens/machine/mod.rs", "Effect", Debug::Derived),
    ("identity-broker/src/tokens/machine/mod.rs", "Input", Debug::Derived),
    ("identity-broker/src/tokens/machine/mod.rs", "Machine", Debug::Derived),
    ("identity-broker/src/tokens/machine/mod.rs", "View", Debug::Derived),
    ("identity-broker/src/tokens/manager.rs", "Manager", Debug::Own),
    ("identity-broker/src/tokens/shelf.rs", "Shelf", Debug::Derived),
    ("identity-broker/src/tokens/shelf.rs", "Slot", Debug::Derived),
    ("identity-broker/src/tokens/token.rs", "Token", Debug::Own),
    ("identity-broker/src/upstream/mod.rs", "Azure", Debug::Own),
    // It knows where to ask for a token, and has none.
    ("identity-broker/src/vault/guard.rs", "Asking", Debug::Own),
    ("identity-broker/src/vault/reader.rs", "Bundle", Debug::Own),
    ("identity-core/src/runtime/controller.rs", "Config", Debug::Derived),
    ("identity-core/src/runtime/controller/checks.rs", "Credentials", Debug::Own),
    ("identity-core/src/runtime/secrets/mod.rs", "Secrets", Debug::Own),
    ("identity-core/src/runtime/secrets/store.rs", "SecretData", Debug::Derived),
    ("identity-core/src/runtime/secrets/store.rs", "Store", Debug::Derived),
    ("identity-core/src/runtime/secrets/store.rs", "Stored", Debug::Derived),
    ("identity-core/src/runtime/secrets/wire.rs", "Wire", Debug::Own),
    ("identity-core/src/runtime/source/directory.rs", "Delta", Debug::Derived),
    ("identity-core/src/runtime/source/directory.rs", "Directory", Debug::Derived),
    ("identity-core/src/runtime/source/directory.rs", "File", Debug::Derived),
    ("identity-core/src/runtime/source/directory.rs", "Found", Debug::Derived),
    ("identity-core/src/runtime/source/mod.rs", "Manifests", Debug::Derived),
    ("identity-core/src/runtime/source/mod.rs", "Source", Debug::Own),
    ("identity-core/src/runtime/source/parse.rs", "Located", Debug::Derived),
    ("identity-core/src/runtime/source/parse.rs", "Object", Debug::Derived),
    ("identity-core/src/runtime/source/parse.rs", "Parsed", Debug::Derived),
    ("identity-core/src/runtime/token_request.rs", "TokenRequests", Debug::Own),
];

/// A type that derives `Debug` shows what its fields show, and these are types of the list, or wrappers that show nothing. One
/// that writes its own is shown by a test with a secret in it: where, and by which words of it.
const SHOWN: &[(&str, &str, &str)] = &[
    ("Checker", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Checker\""),
    ("Credential", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Credential\""),
    ("Credentials", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Credentials\""),
    ("Assertion", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Assertion\""),
    ("Manager", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Manager\""),
    ("Token", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Token\""),
    ("Azure", "identity-broker/src/credentials/secrecy_tests.rs", "hides(\"Azure\""),
    ("Bundle", "identity-broker/src/vault/tests/recorded.rs", "!format!(\"{bundle:?}\").contains("),
    (
        "Asking",
        "identity-broker/src/vault/guard.rs",
        "f.debug_struct(\"Asking\").field(\"scope\", &self.scope).finish_non_exhaustive()",
    ),
    ("Secrets", "identity-core/src/runtime/secrets/secrecy_tests.rs", "hides(\"Secrets\""),
    ("Source", "identity-core/src/runtime/secrets/secrecy_tests.rs", "hides(\"Source\""),
    ("Wire", "identity-core/src/runtime/secrets/secrecy_tests.rs", "hides(\"Wire\""),
    ("TokenRequests", "identity-core/src/runtime/token_request_tests.rs", "!format!(\"{tokens:?}\").contains("),
];

#[test]
fn the_list_of_what_can_be_formatted_is_whole() {
    let sources = sources();
    let mut found: Vec<_> = sources
        .reaching()
        .into_iter()
        .filter(|found| found.debug != Debug::None)
        .map(|found| (found.file.as_str(), found.name.as_str(), found.debug))
        .collect();
    found.sort_unstable_by_key(|(file, name, _)| (*file, *name));
    let new: Vec<_> = found.iter().filter(|one| !LISTED.contains(one)).collect();
    assert!(new.is_empty(), "these reach a secret and can be formatted: list them, and show each in a test: {new:#?}");
    let gone: Vec<_> = LISTED.iter().filter(|one| !found.contains(one)).collect();
    assert!(gone.is_empty(), "these are no more as the list has them: {gone:#?}");
}

#[test]
fn what_formats_itself_is_shown_by_a_test() {
    for (file, name, debug) in LISTED {
        if *debug != Debug::Own {
            continue;
        }
        let shown = SHOWN.iter().find(|(shown, ..)| shown == name);
        let (_, test, words) = shown.unwrap_or_else(|| panic!("{name} of {file} is shown by no test"));
        let source = std::fs::read_to_string(root().join(test)).unwrap();
        assert!(source.contains(words), "{test} does not have `{words}` any more: show {name} there");
    }
}

/// Fields that are called like a secret and are plain text.
const PLAIN: &[(&str, &str)] = &[
    // On its way into a `Token`; neither type can be formatted.
    ("identity-broker/src/tokens/token.rs", "Issued.access_token"),
    ("identity-broker/src/upstream/imds.rs", "Success.access_token"),
    // What a pod sent to the rest of the metadata service, for as long as that is asked.
    ("identity-broker/src/metadata/proxy.rs", "Ask.headers"),
    // The address of who gives tokens.
    ("identity-broker/src/vault/challenge.rs", "Challenge.authorization"),
    // Its `uti`, or a digest.
    ("identity-broker/src/audit/mod.rs", "AuditRecord.token_id"),
    // Names and times.
    ("identity-core/src/assign/action.rs", "StatusUpdate.credential_expiry"),
    ("identity-core/src/assign/status.rs", "Judgement.credential_expiry"),
    ("identity-core/src/lookup/convert.rs", "IdentityError.secret"),
    ("identity-crd/src/credential.rs", "KeyVaultReference.secret_name"),
    ("identity-crd/src/identity.rs", "AzureIdentityStatus.credential_expiry"),
];

#[test]
fn what_is_called_a_secret_is_kept_as_one() {
    let sources = sources();
    let plain: Vec<_> = sources
        .plain
        .iter()
        .map(|(file, name)| (file.as_str(), name.as_str()))
        .filter(|one| !PLAIN.contains(one))
        .collect();
    assert!(plain.is_empty(), "these fields are called like secrets and are kept as plain text: {plain:#?}");
}
