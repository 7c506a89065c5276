//! Opening a database file: every reason against it is found before anything is created or changed.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use file_id::FileId;

use crate::config::Config;
use crate::connection::{self, Location};
use crate::error::{OpenError, OpenErrorReason};
use crate::file_system;
use crate::registry::{self, Found};
use crate::service::Service;
use crate::sidecar::Sidecar;

/// Opens the database at a location, or finds the service that has it open in this process. Blocks.
pub(crate) fn open(location: Location, config: Config) -> Result<Arc<Service>, OpenError> {
    let path = location.path.clone();
    open_or_reason(location, config).map_err(|reason| OpenError { path, reason })
}

fn open_or_reason(location: Location, config: Config) -> Result<Arc<Service>, OpenErrorReason> {
    config.validate().map_err(OpenErrorReason::Config)?;
    connection::require_sqlite_version()?;
    let file = DatabaseFile::find(&location.path, &config)?;
    let location = Location { path: file.path.clone(), ..location };
    match registry::find(file.id()?, config.shutdown_wait_max)? {
        Found::Open(service) => same_options(service, &location, &config),
        Found::OpenBeforeFork => {
            file.disown();
            // As long as the parent has it open, that is the better answer.
            Sidecar::acquire(&file.path)?.release();
            Err(OpenErrorReason::OpenBeforeFork)
        }
        Found::Vacant(claimed) => {
            connection::require_database(&location)?;
            let sidecar = Sidecar::acquire(&file.path).inspect_err(|_| file.disown())?;
            claimed.keep(sidecar);
            let publisher = claimed.publisher();
            let service = Service::start(location, config, claimed)?;
            publisher.publish(&service);
            file.disown();
            Ok(service)
        }
    }
}

fn same_options(
    service: Arc<Service>,
    location: &Location,
    config: &Config,
) -> Result<Arc<Service>, OpenErrorReason> {
    let differing = if service.location.vfs != location.vfs {
        Some("vfs")
    } else if !has_hook_of(&service.location, location) {
        Some("on_connect")
    } else {
        service.config.first_difference(config)
    };
    match differing {
        None => Ok(service),
        Some(option) => Err(OpenErrorReason::OptionDiffers { option }),
    }
}

/// Whether the connections that are open have what `asked` wants; who asks for no hook can use any.
fn has_hook_of(open: &Location, asked: &Location) -> bool {
    match (&open.on_connect, &asked.on_connect) {
        (_, None) => true,
        (Some(open), Some(asked)) => open.is(asked),
        (None, Some(_)) => false,
    }
}

/// A database file that exists; removed again when dropped, if it was made here and the open failed.
struct DatabaseFile {
    /// Canonical: without symbolic links, so that one file has one lock file.
    path: PathBuf,
    made_here: Cell<bool>,
}

impl DatabaseFile {
    fn find(path: &Path, config: &Config) -> Result<Self, OpenErrorReason> {
        // SQLite would take these for a database in memory, a temporary one, or a URI with options.
        let text = path.to_string_lossy();
        if text.is_empty() || text == ":memory:" || text.starts_with("file:") {
            return Err(OpenErrorReason::NotAFilePath);
        }
        match fs::canonicalize(path) {
            Ok(path) => Self::existing(path, config),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::missing(path, config),
            Err(error) => Err(refusal(error, path)),
        }
    }

    fn existing(path: PathBuf, config: &Config) -> Result<Self, OpenErrorReason> {
        let metadata = fs::metadata(&path).map_err(|error| refusal(error, &path))?;
        if !metadata.is_file() {
            return Err(OpenErrorReason::NotAFile);
        }
        #[cfg(unix)]
        {
            // SQLite names the WAL after the path it is given: two names would mean two WALs.
            let links = std::os::unix::fs::MetadataExt::nlink(&metadata);
            if links > 1 {
                return Err(OpenErrorReason::HardLinks { links });
            }
        }
        require_local(directory_of(&path), config)?;
        require_access(&path)?;
        require_access(directory_of(&path))?;
        Ok(Self { path, made_here: Cell::new(false) })
    }

    fn missing(path: &Path, config: &Config) -> Result<Self, OpenErrorReason> {
        let directory = fs::canonicalize(directory_of(path)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => OpenErrorReason::DirectoryMissing,
            _ => refusal(error, directory_of(path)),
        })?;
        let name = path.file_name().ok_or(OpenErrorReason::NotAFile)?;
        let leads_nowhere = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
        if !config.create || leads_nowhere {
            return Err(OpenErrorReason::Missing);
        }
        require_local(&directory, config)?;
        require_access(&directory)?;
        let path = directory.join(name);
        // SQLite would create it readable for everyone; the -wal and -shm files take its mode.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(&path) {
            Ok(_) => Ok(Self { path, made_here: Cell::new(true) }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::existing(path, config),
            Err(error) => Err(refusal(error, &path)),
        }
    }

    fn id(&self) -> Result<FileId, OpenErrorReason> {
        file_id::get_file_id(&self.path).map_err(OpenErrorReason::Io)
    }

    /// Others may rely on the file by now.
    fn disown(&self) {
        self.made_here.set(false);
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        if !self.made_here.get() {
            return;
        }
        // Under the lock, where anyone has made one, so that no other process has begun to use the file; and only
        // while it is empty.
        let _sidecar = match Sidecar::acquire_existing(&self.path) {
            Some(Ok(sidecar)) => Some(sidecar),
            Some(Err(_)) => return,
            None => None,
        };
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() == 0) {
            let _gone_already = fs::remove_file(&self.path).is_err();
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Fails if the WAL would lie where it is not safe, unless that is asked for.
fn require_local(directory: &Path, config: &Config) -> Result<(), OpenErrorReason> {
    if config.allow_network_file_system {
        return Ok(());
    }
    match file_system::unsafe_for_wal(directory).map_err(|error| refusal(error, directory))? {
        Some(kind) => Err(OpenErrorReason::NetworkFileSystem { kind }),
        None => Ok(()),
    }
}

/// Fails if this process may not read and write `at`, without opening it.
#[cfg(unix)]
fn require_access(at: &Path) -> Result<(), OpenErrorReason> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, at, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS)
        .map_err(|error| refusal(error.into(), at))
}

#[cfg(not(unix))]
fn require_access(at: &Path) -> Result<(), OpenErrorReason> {
    let metadata = fs::metadata(at).map_err(|error| refusal(error, at))?;
    if metadata.is_file() && metadata.permissions().readonly() {
        return Err(OpenErrorReason::PermissionDenied { at: at.into() });
    }
    Ok(())
}

fn refusal(error: std::io::Error, at: &Path) -> OpenErrorReason {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            OpenErrorReason::PermissionDenied { at: at.into() }
        }
        ErrorKind::NotADirectory => OpenErrorReason::DirectoryMissing,
        _ => OpenErrorReason::Io(error),
    }
}
