//! Why a transaction is not committed: one of its commits must not be part of it, or the database fails.

use crate::once::StoreError;
use crate::wire::Status;

/// A commit that must not be part of the transaction, and why.
pub struct Refused {
    pub index: usize,
    pub status: Status,
}

/// Why a transaction is not committed.
pub enum Failed {
    Refused(Refused),
    Store(StoreError),
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Failed {
            fn from(error: redb::$error) -> Self {
                Self::Store(failed(error))
            }
        }
    )*};
}

from_redb!(TransactionError, TableError, StorageError, CommitError);

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::new(error.into())
}
