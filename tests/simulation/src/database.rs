//! redb on a simulated disk.

use std::io;
use std::sync::Arc;

use redb::{Database, DatabaseError, StorageBackend};

use crate::{Disk, File};

/// Small, since a history writes little and there are many of them.
const CACHE_BYTES: usize = 1 << 20;

/// Opens the database in a file of `disk`, or makes it, and repairs it where the power was cut.
///
/// One whose making was cut short cannot be opened again: redb takes it for another kind of file.
///
/// # Errors
/// Where the disk fails meanwhile.
pub fn open(disk: &Disk, name: &str) -> Result<Arc<Database>, DatabaseError> {
    let file = disk.open(name).map_err(redb::StorageError::from)?;
    disk.sync_directory().map_err(redb::StorageError::from)?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Backend(file))?;
    Ok(Arc::new(database))
}

#[derive(Debug)]
struct Backend(File);

fn small(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length().map(|length| length as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(small(offset)?, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_length(small(len)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(small(offset)?, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Faults;
    use fastrand::Rng;
    use redb::{ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("numbers");

    fn insert(database: &Database, number: u64) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?.insert(number, number)?;
        transaction.commit()?;
        Ok(())
    }

    /// How many of 0, 1, 2, … are there, without a gap.
    fn count(database: &Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_read()?;
        let table = match transaction.open_table(TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
            table => table?,
        };
        let mut count = 0;
        while table.get(count)?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn what_redb_committed_is_there_after_any_power_cut() {
        for seed in 0..60 {
            let random = &mut Rng::with_seed(seed);
            let disk = Disk::new(random, Faults::default());
            drop(open(&disk, "redb").expect("made while nothing fails"));
            let mut committed = 0;
            for _ in 0..10 {
                disk.turn_on();
                disk.cut_power_at_sync(random.u32(0..20));
                // The power may fail while it is repaired.
                let Ok(database) = open(&disk, "redb") else {
                    assert!(!disk.is_on(), "seed {seed}: it cannot be repaired");
                    continue;
                };
                let found = count(&database).expect("it was repaired");
                let not_known = committed..=committed + 1;
                assert!(
                    not_known.contains(&found),
                    "seed {seed}: {found} of {committed}"
                );
                committed = found;
                while insert(&database, committed).is_ok() {
                    committed += 1;
                }
            }
        }
    }
}
