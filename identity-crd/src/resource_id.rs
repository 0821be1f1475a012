//! The ARM id of a user-assigned managed identity.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use thiserror::Error;

/// `/subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N`, the whole of it
/// and nothing else (the predecessor looked for it anywhere in the string).
///
/// Compares and hashes without regard to case, as Azure Resource Manager does; keeps the spelling it was given.
///
/// ```
/// use identity_crd::ResourceId;
///
/// let id: ResourceId = "/subscriptions/0000/resourcegroups/rg/providers/Microsoft.ManagedIdentity/\
///                       userAssignedIdentities/demo".parse()?;
/// assert_eq!((id.subscription(), id.resource_group(), id.name()), ("0000", "rg", "demo"));
/// # Ok::<(), identity_crd::ResourceIdError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ResourceId {
    text: String,
    subscription: (usize, usize),
    resource_group: (usize, usize),
    name: (usize, usize),
}

/// The text is not the ARM id of a user-assigned managed identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not the id of a user-assigned managed identity: expected \
     /subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name> \
     (`az identity show --query id` prints it)"
)]
pub struct ResourceIdError {
    text: String,
}

const SHAPE: [Option<&str>; 9] = [
    Some(""),
    Some("subscriptions"),
    None,
    Some("resourcegroups"),
    None,
    Some("providers"),
    Some("microsoft.managedidentity"),
    Some("userassignedidentities"),
    None,
];

impl FromStr for ResourceId {
    type Err = ResourceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or_else(|| ResourceIdError { text: text.to_owned() })
    }
}

impl ResourceId {
    fn parse(text: &str) -> Option<Self> {
        let (mut spans, mut found, mut start) = ([(0, 0); 3], 0, 0);
        let mut segments = text.split('/');
        for expected in SHAPE {
            let segment = segments.next()?;
            let end = start + segment.len();
            match expected {
                Some(word) if segment.eq_ignore_ascii_case(word) => {}
                None if is_segment(segment) => {
                    *spans.get_mut(found)? = (start, end);
                    found += 1;
                }
                _ => return None,
            }
            start = end + 1;
        }
        let [subscription, resource_group, name] = spans;
        segments.next().is_none().then(|| Self { text: text.to_owned(), subscription, resource_group, name })
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Subscription id.
    pub fn subscription(&self) -> &str {
        &self.text[self.subscription.0..self.subscription.1]
    }

    /// Name of the resource group.
    pub fn resource_group(&self) -> &str {
        &self.text[self.resource_group.0..self.resource_group.1]
    }

    /// Name of the identity.
    pub fn name(&self) -> &str {
        &self.text[self.name.0..self.name.1]
    }
}

fn is_segment(s: &str) -> bool {
    !s.is_empty() && !s.contains(|c: char| c.is_ascii_control() || matches!(c, ' ' | '?' | '#'))
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for ResourceId {
    fn eq(&self, other: &Self) -> bool {
        self.text.eq_ignore_ascii_case(&other.text)
    }
}

impl Eq for ResourceId {}

impl Hash for ResourceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for c in self.text.bytes() {
            state.write_u8(c.to_ascii_lowercase());
        }
        state.write_u8(0xff);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ID: &str =
        "/subscriptions/S1/resourcegroups/My-Group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo";

    #[test]
    fn parts_keep_their_spelling() {
        let id: ResourceId = ID.parse().unwrap();
        assert_eq!((id.subscription(), id.resource_group(), id.name()), ("S1", "My-Group", "demo"));
        assert_eq!(id.to_string(), ID);
    }

    #[test]
    fn case_does_not_matter_to_equality_or_hash() {
        let id: ResourceId = ID.parse().unwrap();
        let upper: ResourceId = ID.to_uppercase().parse().unwrap();
        assert_eq!(id, upper);
        assert!(HashSet::from([id.clone()]).contains(&upper));
        assert_ne!(id, ID.replace("demo", "demo2").parse().unwrap());
    }

    #[test]
    fn the_error_says_what_is_expected() {
        let error = "demo".parse::<ResourceId>().unwrap_err().to_string();
        assert!(error.contains("`demo`") && error.contains("userAssignedIdentities"), "{error}");
    }
}
