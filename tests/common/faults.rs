//! A VFS around SQLite's default one that fails calls on demand, and remembers every call.
//!
//! Each [`Faults`] is a VFS of its own, so that the tests of a file need not take turns.
#![allow(unsafe_code, reason = "a VFS is a table of C functions")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;
use solewriter::{BlockingDatabase, Config, Database, ReadTransaction};
use tempfile::TempDir;

use super::{beside, check, config_with, plain};

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    /// Of the shared memory of the WAL: the first thing that every transaction does.
    Lock,
}

/// What the call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Database,
    Wal,
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

    /// Does something in the midst of the call that fails.
    pub(crate) fn then(mut self, then: impl Fn() + Send + Sync + 'static) -> Self {
        self.then = Some(Arc::new(then));
        self
    }
}

#[derive(Default)]
struct State {
    faults: Mutex<Vec<Fault>>,
    calls: Mutex<Vec<Call>>,
    on_lock: Mutex<Option<OnLock>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// What is to be returned instead of making the call.
    fn fault(&self, op: Op, of: Of) -> Option<c_int> {
        let by = By::this_thread();
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
                Some(fault.code)
            })
        };
        lock(&self.calls).push(Call { op, of, by, failed: code.is_some() });
        if let Some(then) = then {
            then();
        }
        code
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
        // VFS; it differs in its name, in `xOpen` and in what only `xOpen` looks at.
        let code = unsafe {
            let mut vfs = *ffi::sqlite3_vfs_find(ptr::null());
            vfs.szOsFile += HEADER as c_int;
            vfs.zName = CString::new(name.clone()).unwrap().into_raw();
            vfs.pNext = ptr::null_mut();
            vfs.pAppData = ptr::from_ref(state).cast_mut().cast();
            vfs.xOpen = Some(open);
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

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        lock(&self.state.faults).clear();
    }

    /// Every call since the last [`forget`](Self::forget), in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).clone()
    }

    pub(crate) fn forget(&self) {
        lock(&self.state.calls).clear();
    }

    /// How many calls of this kind there were.
    pub(crate) fn count(&self, op: Op, of: Of) -> usize {
        self.calls().iter().filter(|call| (call.op, call.of) == (op, of)).count()
    }

    /// How many calls have failed.
    pub(crate) fn failed(&self) -> usize {
        self.calls().iter().filter(|call| call.failed).count()
    }

    /// What was called after the first call that failed.
    pub(crate) fn after_failure(&self) -> Vec<Call> {
        self.calls().into_iter().skip_while(|call| !call.failed).skip(1).collect()
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
        let code = (*default).xOpen.unwrap()(default, name, real(file), flags, out_flags);
        if !(*real(file)).pMethods.is_null() {
            let ours = File { base: ffi::sqlite3_file { pMethods: &raw const METHODS }, state, of };
            file.cast::<File>().write(ours);
        }
        code
    }
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
    read: xRead [Op::Read] (to: *mut c_void, n: c_int, offset: i64) -> c_int;
    write: xWrite [Op::Write] (from: *const c_void, n: c_int, offset: i64) -> c_int;
    truncate: xTruncate [Op::Truncate] (bytes: i64) -> c_int;
    sync: xSync [Op::Sync] (flags: c_int) -> c_int;
    file_size: xFileSize(bytes: *mut i64) -> c_int;
    file_lock: xLock(level: c_int) -> c_int;
    file_unlock: xUnlock(level: c_int) -> c_int;
    check_reserved_lock: xCheckReservedLock(out: *mut c_int) -> c_int;
    file_control: xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    sector_size: xSectorSize() -> c_int;
    device_characteristics: xDeviceCharacteristics() -> c_int;
    shm_map: xShmMap(page: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_barrier: xShmBarrier();
    shm_unmap: xShmUnmap(delete: c_int) -> c_int;
    forward_shm_lock: xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
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
