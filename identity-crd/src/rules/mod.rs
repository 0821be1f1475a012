//! The rules for shape, each once: what the API server evaluates (CEL) and the sentence that it and Rust both say.
//!
//! Rules about the predecessor's fields are at the level of `spec`: values that nobody edits keep working ("ratcheting"),
//! a field that an identity's type does not use is not looked at, because the predecessor did not look at it either, and
//! an empty string is as if absent, as in the predecessor's Go. In what is new since, a field out of place is an error, and
//! so is an empty bound of a time box: a template that rendered nothing must not mean "for ever".

mod binding;
mod grant;
mod identity;
mod time_box;

use kube::core::{Reason, Rule};

pub(crate) use self::{binding::*, grant::*, identity::*, time_box::*};
use crate::{Violation, form as pattern};

/// Most entries of `audiences`.
pub(crate) const MAX_AUDIENCES: usize = 64;
/// Longest audience, characters.
pub(crate) const MAX_AUDIENCE: usize = 512;
/// Most entries of `serviceAccounts`.
pub(crate) const MAX_SERVICE_ACCOUNTS: usize = 64;
/// Longest name of an object.
pub(crate) const MAX_OBJECT_NAME: usize = 253;
/// Longest value of a label.
pub(crate) const MAX_LABEL: usize = 63;
/// Most entries of `podSelector.matchLabels`, of `matchExpressions`, and of one expression's `values`.
pub(crate) const MAX_SELECTOR_TERMS: usize = 16;
/// Longest `resourceID` (Azure: 36 + 90 + 128 and the fixed part).
pub(crate) const MAX_RESOURCE_ID: usize = 512;
/// Longest `clientID` or tenant.
pub(crate) const MAX_ID: usize = 256;
/// Longest key of a label: prefix, slash, name.
pub(crate) const MAX_LABEL_KEY: usize = 317;
/// Longest `adEndpoint`.
pub(crate) const MAX_ENDPOINT: usize = 512;
/// `weight` lies between minus this and this.
pub(crate) const MAX_WEIGHT: i32 = 1_000_000;
/// Most `auxiliaryTenantIDs` of any type.
pub(crate) const MAX_TENANTS: usize = 64;
/// Most `auxiliaryTenantIDs` that a type 1 identity can use (the predecessor's token library refused more).
pub(crate) const MAX_AUXILIARY_TENANTS: usize = 3;

/// Longest URL of a vault.
pub(crate) const MAX_VAULT_URL: usize = 512;
/// Longest name of an object in a vault.
pub(crate) const MAX_VAULT_NAME: usize = 127;
/// Longest version of an object in a vault.
pub(crate) const MAX_VAULT_VERSION: usize = 64;
/// Most `windows` of a time box.
pub(crate) const MAX_WINDOWS: usize = 16;
/// Longest cron expression.
pub(crate) const MAX_SCHEDULE: usize = 256;
/// Longest text of an instant or name of a time zone.
pub(crate) const MAX_TIME: usize = 64;
/// Longest text of a duration or date.
pub(crate) const MAX_SHORT: usize = 32;
/// Most `excludeDates` of a window.
pub(crate) const MAX_EXCLUDED: usize = 64;
/// Longest window: 31 days. What is open for longer is said with `notBefore` and `notAfter`.
pub(crate) const MAX_WINDOW_HOURS: u64 = 744;
/// Longest grant: 7 days.
pub(crate) const MAX_GRANT_HOURS: u64 = 168;
/// Most approvals of a grant.
pub(crate) const MAX_APPROVALS: usize = 16;
/// Most `users` or `groups` in one list.
pub(crate) const MAX_PEOPLE: usize = 64;
/// Longest user name.
pub(crate) const MAX_USER: usize = 512;
/// Longest name of a group.
pub(crate) const MAX_GROUP: usize = 256;
/// Longest reason.
pub(crate) const MAX_REASON: usize = 1024;

/// Of a field that this version does not know, in a part that narrows access. What the API server says of it is its own
/// warning: the schema has no such field.
pub(crate) const FOREIGN: &str = "not known to this version, which cannot tell what it forbids: the box is closed; correct the \
                                  name, remove it, or upgrade";

/// One rule.
pub(crate) struct Check {
    /// JSON path below the struct that the rule is about: `spec`, or a part of it.
    pub(crate) field: &'static str,
    /// The sentence: what is wrong, what to do.
    pub(crate) message: &'static str,
    /// Something necessary is absent, rather than something present wrong.
    pub(crate) required: bool,
    /// `false` when broken; `self` is the struct. Must not fail to evaluate: the API server then words the error itself.
    cel: fn() -> String,
}

impl Check {
    /// What the API server evaluates.
    pub(crate) fn expression(&self) -> String {
        (self.cel)()
    }

    /// For the schema.
    pub(crate) fn rule(&self) -> Rule {
        Rule::new((self.cel)()).message(self.message).field_path(format!(".{}", self.field)).reason(if self.required {
            Reason::FieldValueRequired
        } else {
            Reason::FieldValueInvalid
        })
    }

    /// For Rust: a violation unless `holds`.
    pub(crate) fn unless(&self, holds: bool, out: &mut Vec<Violation>) {
        self.unless_at("spec", holds, out);
    }

    /// The same, of a part of the spec.
    pub(crate) fn unless_at(&self, part: &str, holds: bool, out: &mut Vec<Violation>) {
        if !holds {
            out.push(Violation::new(format!("{part}.{}", self.field), self.message));
        }
    }
}

/// `field` (one of the struct's strings), where present and not empty, matches.
fn form(field: &str, re2: &str) -> String {
    format!("!has(self.{field}) || self.{field} == '' || self.{field}.matches(r'{re2}')")
}

/// `value` is a duration, more than none and at most so many hours.
fn duration(value: &str, hours: u64) -> String {
    format!(
        "{value} != '' && {value}.matches(r'{}') && duration({value}) > duration('0s') && \
         duration({value}) <= duration('{hours}h')",
        pattern::DURATION
    )
}

pub(crate) const AUDIENCES: Check = Check {
    field: "audiences",
    message: "an entry is empty or has white space; write each resource as applications ask for it, such as \
              https://vault.azure.net",
    required: false,
    cel: || format!("!has(self.audiences) || self.audiences.all(a, a.matches(r'{}'))", pattern::AUDIENCE),
};
