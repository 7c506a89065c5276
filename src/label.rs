//! The name a command carries through spans, warnings and figures.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// What a command is called in spans, warnings, statistics and errors, such as `"orders.place"`.
///
/// A label says what kind of command it is, never which row it touches: labels are logged, values are not.
/// String literals cost nothing; owned strings are shared, not copied.
///
/// ```
/// use solewriter::Label;
/// assert_eq!(&*Label::from("orders.place"), "orders.place");
/// assert_eq!(Label::from(String::from("import")), Label::from("import"));
/// ```
#[derive(Clone)]
pub struct Label(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Label {
    /// Its text, if it is a string literal.
    pub(crate) fn literal(&self) -> Option<&'static str> {
        match self.0 {
            Repr::Static(name) => Some(name),
            Repr::Shared(_) => None,
        }
    }
}

impl Deref for Label {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

impl From<&'static str> for Label {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for Label {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl PartialEq for Label {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Label {}

impl Hash for Label {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl serde::Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}
