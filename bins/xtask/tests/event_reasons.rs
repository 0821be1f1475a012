//! Every reason of an Event is in the reference.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use identity_broker::audit::series::EventReason;
use identity_core::assign::ToldReason;
use xtask::paths;

/// Where reasons of Events come from: whatever is in two or more humps there is one, or is in [`NOT_REASONS`].
const ROOMS: [&str; 8] = [
    "identity-core/src/assign",
    "identity-core/src/grant",
    "identity-core/src/runtime/controller",
    "identity-broker/src/credentials",
    "identity-broker/src/federated",
    "identity-broker/src/vault",
    "bins/identity-controller/src",
    "bins/identity-node/src",
];

/// Conditions that hold, types of conditions, kinds, codes of others.
const NOT_REASONS: [&str; 16] = [
    "AsExpected",
    "AzureIdentity",
    "AzureIdentityBinding",
    "CertificateDisabled",
    "EnoughApprovals",
    "ForbiddenByConnection",
    "ForbiddenByFirewall",
    "IdentityFound",
    "KeyDisabled",
    "ManagedIdentity",
    "SecretDisabled",
    "SelfSubjectReview",
    "TokenFile",
    "TokensOutliveBox",
    "TriedByNodes",
    "WaitingForApprovals",
];

fn sources(directory: &Path, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                sources(&path, into)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !name.ends_with("tests.rs")
            && !["model.rs", "testing.rs"].contains(&&*name)
        {
            into.push(path);
        }
    }
    Ok(())
}

/// `TwoHumps`, and no more than letters and digits.
fn has_humps(word: &str) -> bool {
    let humps = word.bytes().filter(u8::is_ascii_uppercase).count();
    word.starts_with(|first: char| first.is_ascii_uppercase())
        && humps >= 2
        && humps * 2 <= word.len()
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn words() -> anyhow::Result<BTreeSet<String>> {
    let mut files = Vec::new();
    for room in ROOMS {
        sources(&paths::root().join(room), &mut files)?;
    }
    let mut found = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            found.extend(line.split('"').skip(1).step_by(2).filter(|word| has_humps(word)).map(str::to_owned));
        }
    }
    Ok(found)
}

#[test]
fn every_reason_is_in_the_reference() -> anyhow::Result<()> {
    let page = fs::read_to_string(paths::root().join("docs/audit-events.md"))?;
    let mut words = words()?;
    // The search finds what is known to be there.
    for known in ["WindowOpened", "CredentialRotated", "CredentialRefused", "GrantActivated"] {
        assert!(words.contains(known), "{known} is not found in the code");
    }
    for other in NOT_REASONS {
        assert!(words.remove(other), "{other} is not in the code any more");
    }
    words.extend(EventReason::ALL.iter().map(|reason| reason.as_str().to_owned()));
    words.extend(ToldReason::ALL.iter().map(|reason| reason.as_str().to_owned()));
    let missing: Vec<_> = words.iter().filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "not in docs/audit-events.md: {missing:?}");
    Ok(())
}
