//! What is said to PostgreSQL: the table, and one statement for each thing that is done with it.
//!
//! Times are the database's, in milliseconds since 1970; `$1` is another time where a test sets one.

use bytes::Bytes;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row, Statement};

use super::super::fields::{Fields, damaged, recovery_number};
use super::super::{Epoch, Record, State, StoreError, Timestamp};

/// What the comment on a table of this version says.
pub const VERSION: &str = "bowline request outcomes, version 1";

/// The largest time that is kept: whatever is added to it still fits.
const MILLISECONDS_MAX: u64 = (1 << 62) + (1 << 61);
/// The longest duration that is added to a time.
const DURATION_MAX: u64 = 1 << 60;

const NOW: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";

/// The statements that make a table. `over` is when a record may be forgotten, as
/// [`Record::forgettable`] says.
pub fn schema(table: &str) -> String {
    format!(
        "create table if not exists {table} (
            key bytea primary key,
            fingerprint bytea not null,
            owner bigint not null,
            number bigint not null,
            recovery smallint not null,
            state smallint not null,
            until bigint not null,
            outcome bytea,
            reply_bytes bigint not null default 0,
            waited boolean not null default false,
            over bigint generated always as (case
                when state = 2 then until
                when state = 0 and recovery <> 0 then until + 86400000
            end) stored
        );
        create index if not exists {table}_over on {table} (over) where over is not null;
        create index if not exists {table}_open on {table} (until) where state < 2;
        comment on table {table} is '{VERSION}';"
    )
}

/// Ready on one connection.
pub struct Statements {
    pub begin: Statement,
    pub complete: Statement,
    pub read: Statement,
    pub put: Statement,
    pub remove: Statement,
    pub wait: Statement,
    pub is_in_flight: Statement,
    pub expire: Statement,
    pub forget_oldest: Statement,
    pub in_doubt: Statement,
    pub count: Statement,
    pub shares: Statement,
    pub renew: Statement,
}

impl Statements {
    pub async fn prepare(client: &Client, table: &str) -> Result<Self, Error> {
        // It is evaluated once, and so is one time in all of the statement.
        let clock = format!("clock as materialized (select coalesce($1, {NOW}) as now)");
        let columns = "t.fingerprint, t.owner, t.number, t.recovery, t.state, t.until, t.outcome";
        // Only whoever has asked to be told is told: a notification makes commits wait for each other.
        let told = |payload: &str| {
            format!("case when waited then pg_notify('{table}', {payload})::text end")
        };
        // A row of its own says up to when keys of a scope may have been forgotten: see `mark`.
        let forgotten =
            |mark: &str| format!("(select m.number from {table} m where m.key = {mark})");
        let begin = format!(
            "with {clock},
             begun as (
                insert into {table} (key, fingerprint, owner, number, recovery, state, until)
                select $2, $3, $4, $5, $6, 0, now + $7 from clock
                where now <= $8 and not $12 and ($9 is null
                    or ($9 <= now + $11 and greatest(now - $9, 0) + $11 < $10
                        and $9 > coalesce({}, 0)))
                on conflict do nothing returning true
             )
             select exists (select from begun), now, {columns}, {}
             from clock left join {table} t on t.key = $2",
            forgotten("$13"),
            forgotten("$13"),
        );
        let begin_types = [
            Type::INT8,
            Type::BYTEA,
            Type::BYTEA,
            Type::INT8,
            Type::INT8,
            Type::INT2,
            Type::INT8,
            Type::INT8,
            Type::INT8,
            Type::INT8,
            Type::INT8,
            Type::BOOL,
            Type::BYTEA,
        ];
        let complete = format!(
            "with {clock},
             done as (
                update {table} set state = 2, until = now + $5, outcome = $6, reply_bytes = $7
                from clock
                where key = $2 and owner = $3 and number = $4 and state < 2 returning waited
             )
             select {} from done",
            told("$8")
        );
        let complete_types = [
            Type::INT8,
            Type::BYTEA,
            Type::INT8,
            Type::INT8,
            Type::INT8,
            Type::BYTEA,
            Type::INT8,
            Type::TEXT,
        ];
        let read = format!(
            "with {clock} select false, now, {columns}, {}
             from clock left join {table} t on t.key = $2",
            forgotten("$3"),
        );
        let unchanged = "key = $2 and owner = $3 and number = $4 and state = $5 and until = $6
                and now <= $7";
        let put = format!(
            "with {clock},
             changed as (
                update {table} set fingerprint = $9, owner = $10, number = $11, recovery = $12,
                    state = $13, until = $14, outcome = $15, reply_bytes = $16
                from clock where {unchanged} returning waited
             )
             select {} from changed",
            told("$8")
        );
        let put_types = [
            Type::INT8,
            Type::BYTEA,
            Type::INT8,
            Type::INT8,
            Type::INT2,
            Type::INT8,
            Type::INT8,
            Type::TEXT,
            Type::BYTEA,
            Type::INT8,
            Type::INT8,
            Type::INT2,
            Type::INT2,
            Type::INT8,
            Type::BYTEA,
            Type::INT8,
        ];
        let remove = format!(
            "with {clock},
             gone as (delete from {table} using clock where {unchanged} returning waited)
             select {} from gone",
            told("$8")
        );
        let wait =
            format!("update {table} set waited = true where key = $1 and state = 0 and not waited");
        let is_in_flight = format!("select from {table} where key = $1 and state = 0");
        // Two replicas that forget at once do not wait for each other.
        let forget = |which: &str| {
            format!(
                "with gone as (
                    delete from {table} where key in (
                        select key from {table} where {which}
                        order by over limit $2 for update skip locked
                    ) returning reply_bytes
                 )
                 select count(*), coalesce(sum(reply_bytes), 0)::bigint from gone"
            )
        };
        let expire = forget(&format!("over <= coalesce($1, {NOW})"));
        // Of one scope, $3, in whose keys the ID begins at $4. What is forgotten before its time leaves a mark: the latest
        // time at which its keys were made, as `record::forgotten` has it. It lasts as long as what it stands for.
        let forget_oldest = format!(
            "with {clock},
             gone as (
                delete from {table} where key in (
                    select key from {table}, clock
                    where over is not null and substring(key from 1 for length($3)) = $3
                    and (state = 2 or until <= now)
                    order by over limit $2 for update of {table} skip locked
                ) returning key, reply_bytes, over, least(
                    case state when 2 then until - $5 else until end, (select now from clock)) as ended
             ),
             made as (
                select over, ended, case when length(key) = $4 + 17 and get_byte(key, $4) = 0
                    and get_byte(key, $4 + 7) >> 4 = 7
                    then ('x' || lpad(encode(substring(key from $4 + 2 for 6), 'hex'), 16, '0'))::bit(64)::bigint
                end as created from gone
             ),
             mark as (
                insert into {table} (key, fingerprint, owner, number, recovery, state, until)
                select $6, '', 0, max(least(created, (ended + now) / 2 - 1)), 0, 2, max(over)
                from made, clock having max(created) is not null
                on conflict (key) do update set number = greatest({table}.number, excluded.number),
                    until = greatest({table}.until, excluded.until)
             )
             select count(*), coalesce(sum(reply_bytes), 0)::bigint,
                coalesce((select now from clock) - max(ended), 0)::bigint from gone"
        );
        let forget_oldest_types = [
            Type::INT8,
            Type::INT8,
            Type::BYTEA,
            Type::INT4,
            Type::INT8,
            Type::BYTEA,
        ];
        // What each of the largest scopes has.
        let shares = format!(
            "select substring(key from 1 for 3 + get_byte(key, 1) * 256 + get_byte(key, 2)),
                (sum(reply_bytes) + $1 * count(*))::bigint
             from {table} where get_byte(key, 0) < 255 group by 1 order by 2 desc limit $2"
        );
        let renew = format!(
            "with {clock},
             renewed as (
                update {table} t set until = now + $5
                from clock, unnest($2::bytea[], $3::bigint[], $4::bigint[]) as own (key, owner, number)
                where t.key = own.key and t.owner = own.owner and t.number = own.number
                    and t.state = 0 and now <= $6
                returning t.owner, t.number
             )
             select owner, number from renewed"
        );
        let renew_types = [
            Type::INT8,
            Type::BYTEA_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8,
            Type::INT8,
        ];
        let in_doubt = format!(
            "select key from {table} where state < 2
             and (state = 1 or (recovery = 0 and until <= coalesce($1, {NOW}))) limit $2"
        );
        let count = format!("select count(*), coalesce(sum(reply_bytes), 0)::bigint from {table}");
        let limited = [Type::INT8, Type::INT8];
        let (
            begin,
            complete,
            read,
            put,
            remove,
            wait,
            is_in_flight,
            expire,
            forget_oldest,
            in_doubt,
            count,
            shares,
            renew,
        ) = tokio::try_join!(
            client.prepare_typed(&begin, &begin_types),
            client.prepare_typed(&complete, &complete_types),
            client.prepare_typed(&read, &[Type::INT8, Type::BYTEA, Type::BYTEA]),
            client.prepare_typed(&put, &put_types),
            client.prepare_typed(&remove, &put_types[..8]),
            client.prepare_typed(&wait, &[Type::BYTEA]),
            client.prepare_typed(&is_in_flight, &[Type::BYTEA]),
            client.prepare_typed(&expire, &limited),
            client.prepare_typed(&forget_oldest, &forget_oldest_types),
            client.prepare_typed(&in_doubt, &limited),
            client.prepare_typed(&count, &[]),
            client.prepare_typed(&shares, &limited),
            client.prepare_typed(&renew, &renew_types),
        )?;
        Ok(Self {
            begin,
            complete,
            read,
            put,
            remove,
            wait,
            is_in_flight,
            expire,
            forget_oldest,
            in_doubt,
            count,
            shares,
            renew,
        })
    }
}

/// The key of the row that says up to when keys of a scope may have been forgotten: no request's key begins like this.
pub fn mark(scope: &[u8]) -> Vec<u8> {
    [&[MARK], scope].concat()
}

const MARK: u8 = 255;

/// Undoes a claim that the server may still be making. In one transaction: the first statement waits until whoever is
/// inserting a row of this key has, or has not, and the next ones see what came of it.
pub fn settle(table: &str, key: &[u8], epoch: Epoch) -> String {
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let (owner, number) = (epoch.owner.cast_signed(), epoch.number.cast_signed());
    let own = format!("key = '\\x{key}' and owner = {owner} and number = {number} and state < 2");
    format!(
        "insert into {table} (key, fingerprint, owner, number, recovery, state, until)
            values ('\\x{key}', '', {owner}, {number}, 0, 0, 0) on conflict do nothing;
         update {table} set until = 0 where {own} and recovery > 3;
         delete from {table} where {own} and recovery < 4"
    )
}

/// A record's columns, as they are written.
pub struct Columns {
    pub fingerprint: [u8; 32],
    pub owner: i64,
    pub number: i64,
    pub recovery: i16,
    pub state: i16,
    pub until: i64,
    pub outcome: Option<Bytes>,
    pub reply_bytes: i64,
}

impl Columns {
    pub fn of(record: &Record) -> Self {
        let (state, until, outcome) = match &record.state {
            State::InFlight { until } => (0, milliseconds(*until), None),
            State::InDoubt => (1, 0, None),
            State::Done { outcome, expires } => {
                (2, milliseconds(*expires), Some(outcome.to_bytes()))
            }
        };
        Self {
            fingerprint: record.fingerprint.to_bytes(),
            owner: record.epoch.owner.cast_signed(),
            number: record.epoch.number.cast_signed(),
            recovery: recovery_number(record.recovery, record.begun_before).into(),
            state,
            until,
            outcome,
            reply_bytes: record.bytes() as i64,
        }
    }
}

/// Up to when keys of this scope may have been forgotten.
pub fn forgotten(row: &Row) -> Result<Timestamp, StoreError> {
    let until: Option<i64> = row.try_get(9).map_err(damaged)?;
    let until = until.unwrap_or_default().max(0).cast_unsigned();
    Ok(Timestamp::from_milliseconds(until))
}

/// What is in the columns after the second, if anything is.
pub fn record(row: &Row) -> Result<Option<Record>, StoreError> {
    let fields = read(row).map_err(damaged)?;
    fields.map(|fields| fields.record()).transpose()
}

fn read(row: &Row) -> Result<Option<Fields<'_>>, Box<dyn std::error::Error + Send + Sync>> {
    let Some(fingerprint) = row.try_get::<_, Option<&[u8]>>(2)? else {
        return Ok(None);
    };
    Ok(Some(Fields {
        fingerprint,
        epoch: Epoch {
            owner: row.try_get::<_, i64>(3)?.cast_unsigned(),
            number: row.try_get::<_, i64>(4)?.cast_unsigned(),
        },
        recovery: row.try_get::<_, i16>(5)?.try_into()?,
        state: row.try_get::<_, i16>(6)?.try_into()?,
        until: row.try_get::<_, i64>(7)?.try_into()?,
        outcome: row.try_get(8)?,
    }))
}

pub fn milliseconds(time: Timestamp) -> i64 {
    time.milliseconds().min(MILLISECONDS_MAX) as i64
}

pub fn duration(duration: std::time::Duration) -> i64 {
    duration.as_millis().min(u128::from(DURATION_MAX)) as i64
}
