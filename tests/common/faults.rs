//! A VFS around SQLite's default one that fails calls on demand, remembers every call, and records what the files
//! are changed to.
//!
//! Each [`Faults`] is a VFS of its own, so that the tests of a file need not take turns.
#![allow(unsafe_code, reason = "a VFS is a table of C functions")]

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;
use solewriter::{BlockingDatabase, Config, Database, ReadTransaction};
use tempfile::TempDir;

use super::disk::{Change, Recorded};
use super::{beside, check, config_with, plain};

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Delete,
    /// Asks for the size of a file.
    Size,
    /// Asks whether a file is there.
    Access,
    /// Of the file.
    FileLock,
    /// Of the shared memory of the WAL: the first thing that every transaction does.
    Lock,
    /// Of that shared memory into this process.
    Map,
}

/// What the call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Database,
    Wal,
    /// The rollback journal, which a database has until it has a WAL.
    Journal,
    Other,
}

/// Whose thread calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Writer,
    Checkpointer,
    /// A reader, or a test.
    Other,
}

impl By {
    fn this_thread() -> Self {
        match std::thread::current().name() {
            Some(name) if name.ends_with("-writer") => Self::Writer,
            Some(name) if name.ends_with("-checkpoint") => Self::Checkpointer,
            _ => Self::Other,
        }
    }
}

/// A call that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) of: Of,
    pub(crate) by: By,
    /// Whether a fault was injected.
    pub(crate) failed: bool,
}

/// A lock of the shared memory of the WAL that was taken or given back: <https://www.sqlite.org/walformat.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShmLock {
    pub(crate) by: By,
    pub(crate) slot: c_int,
    pub(crate) slots: c_int,
    pub(crate) is_exclusive: bool,
    pub(crate) is_held: bool,
}

type OnLock = Arc<dyn Fn(ShmLock) + Send + Sync>;

impl Call {
    /// Whether the same kind of thread makes the same of the same file.
    pub(crate) fn is_like(self, other: Self) -> bool {
        (self.op, self.of, self.by) == (other.op, other.of, other.by)
    }
}

/// What a call fails with. Some can fail in two ways, and one of these looks as if it were not of the disk: damage, no
/// space, somebody else's lock.
pub(crate) const CODES: [fn(Call) -> c_int; 2] = [
    |call| match call.op {
        Op::Open => ffi::SQLITE_CANTOPEN,
        Op::Read => ffi::SQLITE_IOERR_READ,
        Op::Write => ffi::SQLITE_IOERR_WRITE,
        Op::Sync => ffi::SQLITE_IOERR_FSYNC,
        Op::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
        Op::Delete => ffi::SQLITE_IOERR_DELETE,
        Op::Size => ffi::SQLITE_IOERR_FSTAT,
        Op::Access => ffi::SQLITE_IOERR_ACCESS,
        Op::FileLock => ffi::SQLITE_IOERR_LOCK,
        Op::Lock => ffi::SQLITE_IOERR_SHMLOCK,
        Op::Map => ffi::SQLITE_IOERR_SHMMAP,
    },
    |call| match call.op {
        Op::Read => ffi::SQLITE_IOERR_SHORT_READ,
        Op::Write => ffi::SQLITE_FULL,
        Op::FileLock => ffi::SQLITE_BUSY,
        Op::Lock => ffi::SQLITE_PROTOCOL,
        _ => CODES[0](call),
    },
];

/// Which calls fail, and how.
pub(crate) struct Fault {
    op: Op,
    of: Of,
    by: Option<By>,
    code: c_int,
    spared: u32,
    times: u32,
    then: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Fault {
    /// Every call of this kind fails, until told otherwise.
    pub(crate) fn new(op: Op, of: Of, code: c_int) -> Self {
        Self { op, of, by: None, code, spared: 0, times: u32::MAX, then: None }
    }

    /// No call fails, for something to be [done](Self::then) right before it.
    pub(crate) fn none(op: Op, of: Of) -> Self {
        Self::new(op, of, ffi::SQLITE_OK)
    }

    pub(crate) fn by(mut self, by: By) -> Self {
        self.by = Some(by);
        self
    }

    pub(crate) fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    pub(crate) fn once(self) -> Self {
        self.times(1)
    }

    /// The first calls succeed.
    pub(crate) fn after(mut self, spared: u32) -> Self {
        self.spared = spared;
        self
    }

    /// Does something in the midst of the call that fails, or else before it.
    pub(crate) fn then(mut self, then: impl Fn() + Send + Sync + 'static) -> Self {
        self.then = Some(Arc::new(then));
        self
    }
}

/// How long it goes on that calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasts {
    Once,
    /// Calls of the same kind by the same thread fail from then on.
    ForItsKind,
    /// Every call fails from then on.
    ForAll,
}

/// The call at which calls begin to fail, whatever it is.
struct Outage {
    /// How many calls come before it.
    spared: usize,
    lasts: Lasts,
    /// What a call fails with.
    code: fn(Call) -> c_int,
    hit: Option<Hit>,
}

/// The first call that an outage has met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    pub(crate) call: Call,
    /// How many changes had been recorded by then.
    pub(crate) recorded: usize,
}

impl Outage {
    /// What a call fails with that is made after `calls` others and `recorded` changes.
    fn fails(&mut self, calls: usize, recorded: usize, call: Call) -> Option<c_int> {
        let fails = match (self.hit, self.lasts) {
            (None, _) => calls >= self.spared,
            (Some(_), Lasts::Once) => false,
            (Some(hit), Lasts::ForItsKind) => hit.call.is_like(call),
            (Some(_), Lasts::ForAll) => true,
        };
        fails.then(|| {
            self.hit.get_or_insert(Hit { call, recorded });
            (self.code)(call)
        })
    }

    fn end(&mut self) {
        (self.spared, self.lasts) = (usize::MAX, Lasts::Once);
    }
}

#[derive(Default)]
struct State {
    faults: Mutex<Vec<Fault>>,
    outage: Mutex<Option<Outage>>,
    /// Writes that fail have written a part.
    tears_writes: AtomicBool,
    /// The next call of the checkpointer waits.
    holds_checkpointer: Mutex<bool>,
    goes_on: Condvar,
    calls: Mutex<Vec<Call>>,
    /// What was changed, in order, once it is recorded. No sync is passed on then.
    record: Mutex<Option<Vec<Recorded>>>,
    /// How often a sync of the database has failed while it was recorded, and one of the WAL.
    database_failures: AtomicU64,
    wal_failures: AtomicU64,
    on_lock: Mutex<Option<OnLock>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// What is to be returned instead of making the call.
    fn fault(&self, op: Op, of: Of) -> Option<c_int> {
        let by = By::this_thread();
        if by == By::Checkpointer {
            let held = lock(&self.holds_checkpointer);
            drop(self.goes_on.wait_while(held, |held| *held).unwrap_or_else(PoisonError::into_inner));
        }
        let mut then = None;
        let code = {
            let mut faults = lock(&self.faults);
            let mut fitting = faults.iter_mut().filter(|fault| {
                (fault.op, fault.of) == (op, of)
                    && fault.by.is_none_or(|whose| whose == by)
                    && fault.times > 0
            });
            fitting.next().and_then(|fault| {
                if fault.spared > 0 {
                    fault.spared -= 1;
                    return None;
                }
                fault.times -= 1;
                then.clone_from(&fault.then);
                Some(fault.code).filter(|code| *code != ffi::SQLITE_OK)
            })
        };
        let code = {
            let mut calls = lock(&self.calls);
            let call = Call { op, of, by, failed: false };
            let outage = || {
                let recorded = lock(&self.record).as_ref().map_or(0, Vec::len);
                lock(&self.outage).as_mut()?.fails(calls.len(), recorded, call)
            };
            let code = code.or_else(outage);
            calls.push(Call { failed: code.is_some(), ..call });
            code
        };
        if code.is_some() {
            self.hold_checkpointer(false);
        }
        if let Some(then) = then {
            then();
        }
        code
    }

    /// Makes a call that changes a file, and records it if it succeeds. Nobody records anything in between.
    fn change(&self, of: Of, call: impl FnOnce() -> c_int, change: impl FnOnce() -> Change) -> c_int {
        let mut record = lock(&self.record);
        let code = call();
        if let Some(record) = &mut *record
            && code == ffi::SQLITE_OK
            && of != Of::Other
        {
            record.push(Recorded { of, change: change() });
        }
        code
    }

    fn hold_checkpointer(&self, hold: bool) {
        // After a failure the writer may wait for it at any time.
        *lock(&self.holds_checkpointer) = hold && self.hit().is_none();
        self.goes_on.notify_all();
    }

    fn hit(&self) -> Option<Hit> {
        lock(&self.outage).as_ref()?.hit
    }

    fn is_recording(&self) -> bool {
        lock(&self.record).is_some()
    }

    fn sync_failures(&self, of: Of) -> &AtomicU64 {
        if of == Of::Wal { &self.wal_failures } else { &self.database_failures }
    }
}

/// A VFS, and what fails in it.
#[derive(Clone)]
pub(crate) struct Faults {
    name: String,
    state: &'static State,
}

impl Faults {
    pub(crate) fn register() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("faults-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let state: &'static State = Box::leak(Box::default());
        // SAFETY: SQLite's own VFS is there for ever. The copy and its name are never freed, as SQLite asks of a
        // VFS; it differs in its name, in `xOpen`, `xDelete` and `xAccess` and in what only these look at.
        let code = unsafe {
            let mut vfs = *ffi::sqlite3_vfs_find(ptr::null());
            vfs.szOsFile += HEADER as c_int;
            vfs.zName = CString::new(name.clone()).unwrap().into_raw();
            vfs.pNext = ptr::null_mut();
            vfs.pAppData = ptr::from_ref(state).cast_mut().cast();
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            vfs.xAccess = Some(access);
            ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0)
        };
        assert_eq!(code, ffi::SQLITE_OK);
        Self { name, state }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Lets calls fail, besides those that fail already.
    pub(crate) fn inject(&self, fault: Fault) {
        lock(&self.state.faults).push(fault);
    }

    /// Has `told` called after each lock of the shared memory that succeeds or is given back, on its thread.
    pub(crate) fn on_lock(&self, told: impl Fn(ShmLock) + Send + Sync + 'static) {
        *lock(&self.state.on_lock) = Some(Arc::new(told));
    }

    /// After so many more calls the next one fails, whatever it is, with what `code` says of it.
    pub(crate) fn fail_after(&self, spared: usize, lasts: Lasts, code: fn(Call) -> c_int) {
        let spared = lock(&self.state.calls).len() + spared;
        *lock(&self.state.outage) = Some(Outage { spared, lasts, code, hit: None });
    }

    /// The checkpointer's next call waits until this is called with `false`, or a call has met what
    /// [`fail_after`](Self::fail_after) asked for.
    pub(crate) fn hold_checkpointer(&self, hold: bool) {
        self.state.hold_checkpointer(hold);
    }

    /// From now on a write that fails has written its first half.
    pub(crate) fn tear_writes(&self) {
        self.state.tears_writes.store(true, Ordering::Relaxed);
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        lock(&self.state.faults).clear();
        lock(&self.state.outage).iter_mut().for_each(Outage::end);
    }

    /// The call that [`fail_after`](Self::fail_after) has met.
    pub(crate) fn hit(&self) -> Option<Hit> {
        lock(&self.state.outage).as_ref()?.hit
    }

    /// Every call since the last [`forget`](Self::forget), in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).clone()
    }

    pub(crate) fn forget(&self) {
        lock(&self.state.calls).clear();
    }

    /// How many calls there were.
    pub(crate) fn called(&self) -> usize {
        lock(&self.state.calls).len()
    }

    /// How many calls of this kind there were.
    pub(crate) fn count(&self, op: Op, of: Of) -> usize {
        self.calls().iter().filter(|call| (call.op, call.of) == (op, of)).count()
    }

    /// Whether a call has met what [`fail_after`](Self::fail_after) asked for.
    pub(crate) fn is_hit(&self) -> bool {
        self.hit().is_some()
    }

    /// How many calls have failed.
    pub(crate) fn failed(&self) -> usize {
        lock(&self.state.calls).iter().filter(|call| call.failed).count()
    }

    /// What was called after the first call that failed.
    pub(crate) fn after_failure(&self) -> Vec<Call> {
        self.calls().into_iter().skip_while(|call| !call.failed).skip(1).collect()
    }

    /// Records from now on what is changed in the database and its WAL. Nothing is synced any more: what a power
    /// loss leaves is made of the record.
    ///
    /// Then a sync that fails fails once for each descriptor that has the file open, as Linux has it since 4.13
    /// (<https://docs.kernel.org/filesystems/vfs.html>, "Handling errors during writeback").
    pub(crate) fn record(&self) {
        *lock(&self.state.record) = Some(Vec::new());
    }

    /// How much has been recorded.
    pub(crate) fn recorded(&self) -> usize {
        lock(&self.state.record).as_ref().map_or(0, Vec::len)
    }

    /// Ends the record.
    pub(crate) fn take_record(&self) -> Vec<Recorded> {
        lock(&self.state.record).take().unwrap_or_default()
    }

    /// Opens the database through this VFS.
    pub(crate) fn open(&self, path: &Path, set: impl FnOnce(&mut Config)) -> Database {
        let config = config_with(|config| {
            config.mmap_bytes = 0;
            set(config);
        });
        Database::builder(path).config(config).vfs(self.name()).open_blocking().unwrap()
    }

    /// Makes a database with the table `t (id, x UNIQUE)` that holds 0, and opens it through this VFS.
    pub(crate) fn create(&self, dir: &TempDir, set: impl FnOnce(&mut Config)) -> Database {
        let path = dir.path().join("test.db");
        plain(&path)
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE); INSERT INTO t (x) VALUES (0)")
            .unwrap();
        self.open(&path, set)
    }
}

/// The values of `t` as a read sees them, in the order of their insertion.
pub(crate) fn xs(db: &Database) -> Vec<i64> {
    let blocking: BlockingDatabase = db.blocking();
    let all = |tx: &ReadTransaction<'_>| tx.query_all("SELECT x FROM t ORDER BY id", (), |row| row.get(0));
    blocking.read("xs", all).wait().unwrap()
}

/// The values of `t` that a file holds, which nobody has open; it must be intact.
pub(crate) fn stored(path: &Path) -> Vec<i64> {
    check(path);
    let connection = plain(path);
    let mut all = connection.prepare("SELECT x FROM t ORDER BY id").unwrap();
    all.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// The database and its WAL as a crash right now would leave them.
pub(crate) struct CrashImage(TempDir);

impl CrashImage {
    pub(crate) fn take(path: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // By another process: to close a descriptor of the file here would drop SQLite's locks on it.
        let files = [path.to_owned(), beside(path, "-wal")];
        let copied = Command::new("cp").args(files).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        Self(dir)
    }

    /// The values of `t` after the recovery.
    pub(crate) fn xs(&self) -> Vec<i64> {
        stored(&self.0.path().join("test.db"))
    }
}

/// A file of ours; that of SQLite's own VFS follows it in memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    state: *const State,
    of: Of,
    /// The failed syncs that this descriptor has been told of, or that were before its time.
    failures_told: Cell<u64>,
}

const HEADER: usize = size_of::<File>();

/// Version 2, without `xFetch`: what is mapped is not read by calls, which could fail.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(file_lock),
    xUnlock: Some(file_unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let of = match flags {
        _ if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 => Of::Database,
        _ if flags & ffi::SQLITE_OPEN_WAL != 0 => Of::Wal,
        _ if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => Of::Journal,
        _ => Of::Other,
    };
    // SAFETY: `file` has room for our header and the file behind it, as `szOsFile` asks for; `pAppData` is the
    // state that was registered with this VFS; the rest is passed on as it came.
    unsafe {
        let state = (*vfs).pAppData.cast::<State>().cast_const();
        (*file).pMethods = ptr::null();
        if let Some(code) = (*state).fault(Op::Open, of) {
            return code;
        }
        let default = ffi::sqlite3_vfs_find(ptr::null());
        let is_new = (*state).is_recording() && !name.is_null() && !path_of(name).exists();
        let call = || (*default).xOpen.unwrap()(default, name, real(file), flags, out_flags);
        let code = if is_new { (*state).change(of, call, || Change::Create) } else { call() };
        if !(*real(file)).pMethods.is_null() {
            let base = ffi::sqlite3_file { pMethods: &raw const METHODS };
            let failures_told = Cell::new((*state).sync_failures(of).load(Ordering::Relaxed));
            let ours = File { base, state, of, failures_told };
            file.cast::<File>().write(ours);
        }
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: `pAppData` is the state that was registered with this VFS; the rest is passed on as it came.
    unsafe {
        let state = (*vfs).pAppData.cast::<State>().cast_const();
        let of = match path_of(name).to_string_lossy() {
            name if name.ends_with("-wal") => Of::Wal,
            name if name.ends_with("-journal") => Of::Journal,
            _ => Of::Other,
        };
        if let Some(code) = (*state).fault(Op::Delete, of) {
            return code;
        }
        let default = ffi::sqlite3_vfs_find(ptr::null());
        let call = || (*default).xDelete.unwrap()(default, name, sync_directory);
        (*state).change(of, call, || Change::Delete { is_synced: sync_directory != 0 })
    }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    what: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: `pAppData` is the state that was registered with this VFS; the rest is passed on as it came.
    unsafe {
        let state = (*vfs).pAppData.cast::<State>().cast_const();
        let of = if path_of(name).to_string_lossy().ends_with("-wal") { Of::Wal } else { Of::Other };
        if let Some(code) = (*state).fault(Op::Access, of) {
            return code;
        }
        let default = ffi::sqlite3_vfs_find(ptr::null());
        (*default).xAccess.unwrap()(default, name, what, out)
    }
}

/// The path that SQLite passes.
unsafe fn path_of<'n>(name: *const c_char) -> &'n Path {
    // SAFETY: the caller passes what SQLite has passed: a C string that lives as long as the call.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

/// The file of SQLite's own VFS.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the caller passes a file of this VFS, which is that much larger than its header.
    unsafe { file.byte_add(HEADER) }
}

macro_rules! calls {
    ($($name:ident: $method:ident $([$op:expr])? ($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => { $(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) $(-> $result)? {
            // SAFETY: SQLite calls this for files that `open` has opened, and the arguments are passed on.
            unsafe {
                $(
                    let File { state, of, .. } = &*file.cast::<File>();
                    if let Some(code) = (**state).fault($op, *of) {
                        return code;
                    }
                )?
                let real = real(file);
                (*(*real).pMethods).$method.unwrap()(real $(, $arg)*)
            }
        }
    )* };
}

calls! {
    close: xClose() -> c_int;
    forward_read: xRead (to: *mut c_void, n: c_int, offset: i64) -> c_int;
    forward_write: xWrite (from: *const c_void, n: c_int, offset: i64) -> c_int;
    forward_truncate: xTruncate (bytes: i64) -> c_int;
    forward_sync: xSync (flags: c_int) -> c_int;
    file_size: xFileSize [Op::Size] (bytes: *mut i64) -> c_int;
    file_lock: xLock [Op::FileLock] (level: c_int) -> c_int;
    file_unlock: xUnlock(level: c_int) -> c_int;
    check_reserved_lock: xCheckReservedLock(out: *mut c_int) -> c_int;
    file_control: xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    sector_size: xSectorSize() -> c_int;
    device_characteristics: xDeviceCharacteristics() -> c_int;
    shm_map: xShmMap [Op::Map] (page: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_barrier: xShmBarrier();
    shm_unmap: xShmUnmap(delete: c_int) -> c_int;
    forward_shm_lock: xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, n: c_int, offset: i64) -> c_int {
    // SAFETY: as above; `to` has room for `n` bytes.
    unsafe {
        let File { state, of, .. } = &*file.cast::<File>();
        match (**state).fault(Op::Read, *of) {
            None => forward_read(file, to, n, offset),
            Some(ffi::SQLITE_IOERR_SHORT_READ) => {
                forward_read(file, to, n, offset);
                let bytes = std::slice::from_raw_parts_mut(to.cast::<u8>(), n as usize);
                // Zeros in the place of any other page SQLite takes for what is there, and writes on.
                let is_missed = *of == Of::Database && offset > 0 && !is_of_a_tree(bytes);
                bytes.fill(0);
                if is_missed { ffi::SQLITE_IOERR_CORRUPTFS } else { ffi::SQLITE_IOERR_SHORT_READ }
            }
            Some(code) => code,
        }
    }
}

/// Whether a page belongs to a table or an index (<https://www.sqlite.org/fileformat2.html#b_tree_pages>), and not
/// to a large value or to the free pages.
fn is_of_a_tree(page: &[u8]) -> bool {
    page.len() >= 512 && matches!(page[0], 2 | 5 | 10 | 13)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    n: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: as above; `from` points to `n` bytes.
    unsafe {
        let File { state, of, .. } = &*file.cast::<File>();
        let write = |n: c_int| {
            let change = || {
                let bytes = std::slice::from_raw_parts(from.cast::<u8>(), n as usize);
                Change::Write { offset: offset as usize, bytes: bytes.into() }
            };
            (**state).change(*of, || forward_write(file, from, n, offset), change)
        };
        match (**state).fault(Op::Write, *of) {
            None => write(n),
            Some(code) => {
                if (**state).tears_writes.load(Ordering::Relaxed) && n > 1 {
                    write(n / 2);
                }
                code
            }
        }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, bytes: i64) -> c_int {
    // SAFETY: as above.
    unsafe {
        let File { state, of, .. } = &*file.cast::<File>();
        if let Some(code) = (**state).fault(Op::Truncate, *of) {
            return code;
        }
        (**state).change(*of, || forward_truncate(file, bytes), || Change::Truncate(bytes as usize))
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let File { state, of, failures_told, .. } = &*file.cast::<File>();
        let state = &**state;
        let fault = state.fault(Op::Sync, *of);
        if !state.is_recording() {
            return fault.unwrap_or_else(|| forward_sync(file, flags));
        }
        if let Some(code) = fault {
            let fail = || {
                failures_told.set(state.sync_failures(*of).fetch_add(1, Ordering::Relaxed) + 1);
                ffi::SQLITE_OK
            };
            state.change(*of, fail, || Change::SyncFailed);
            return code;
        }
        let sync = || {
            let failures = state.sync_failures(*of).load(Ordering::Relaxed);
            let is_told = failures_told.replace(failures) == failures;
            // Told of an earlier one, the system writes what there is, but does not have the disk flush its cache.
            if is_told { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_FSYNC }
        };
        state.change(*of, sync, || Change::Sync)
    }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let File { state, of, .. } = &*file.cast::<File>();
        // An unlock can't be refused.
        let is_held = flags & ffi::SQLITE_SHM_LOCK != 0;
        let fault = if is_held { (**state).fault(Op::Lock, *of) } else { None };
        let code = fault.unwrap_or_else(|| forward_shm_lock(file, offset, n, flags));
        let told = lock(&(**state).on_lock).clone();
        if let Some(told) = told
            && code == ffi::SQLITE_OK
        {
            let is_exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
            told(ShmLock { by: By::this_thread(), slot: offset, slots: n, is_exclusive, is_held });
        }
        code
    }
}
