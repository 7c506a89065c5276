//! A statement as a value, for what every system runs in the same words.

/// A parameter.
#[derive(Clone, Debug)]
pub enum Value {
    Integer(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

/// A statement that gives no rows, and its parameters in their order.
#[derive(Clone, Debug)]
pub struct Statement {
    pub sql: &'static str,
    pub parameters: Vec<Value>,
}

impl Statement {
    pub(crate) fn new<const N: usize>(sql: &'static str, parameters: [Value; N]) -> Self {
        Self { sql, parameters: parameters.into() }
    }
}
