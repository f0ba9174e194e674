//! Values bound to a statement, each with the type that the statement is told.
//!
//! Because the types come along, a statement needs no preparation: it goes out unnamed, in one trip,
//! and leaves nothing behind on the connection. A pooler may have each transaction answered by
//! another server connection, on which no statement prepared before is known.

use tokio_postgres::types::{ToSql, Type};

/// A value to be bound, and its type.
pub(super) trait Value: ToSql + Sync {
    /// The type that the statement is told.
    fn of_type(&self) -> Type;
}

/// The values of one statement, in order.
pub(super) type Params<'p> = &'p [&'p dyn Value];

/// The same values, as the client takes them.
pub(super) fn typed(params: Params<'_>) -> Vec<(&(dyn ToSql + Sync), Type)> {
    params
        .iter()
        .map(|value| (*value as &(dyn ToSql + Sync), value.of_type()))
        .collect()
}

/// A Rust type with the type of one value and that of an array; absent values have the same.
macro_rules! values {
    ($($rust:ty => $one:ident, $many:ident;)*) => {$(
        values!(@ $one: $rust, Option<$rust>);
        values!(@ $many: Vec<$rust>, Vec<Option<$rust>>, &[$rust], &[Option<$rust>]);
    )*};
    (@ $of:ident: $($rust:ty),*) => {$(
        impl Value for $rust {
            fn of_type(&self) -> Type {
                Type::$of
            }
        }
    )*};
}

values! {
    bool => BOOL, BOOL_ARRAY;
    i64 => INT8, INT8_ARRAY;
    String => TEXT, TEXT_ARRAY;
    &str => TEXT, TEXT_ARRAY;
    Vec<u8> => BYTEA, BYTEA_ARRAY;
    &[u8] => BYTEA, BYTEA_ARRAY;
}
