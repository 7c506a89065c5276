//! Which file systems a WAL is not safe on.
//!
//! A WAL needs memory that all processes share and locks that all of them see
//! (<https://www.sqlite.org/wal.html>). File systems that cross a network, or the border of a virtual machine,
//! keep these wrongly or not at all, and SQLite can't tell.

use std::io;
use std::path::Path;

/// What the file system of a directory is called, if a WAL is not safe on it; nothing is opened.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn unsafe_for_wal(directory: &Path) -> io::Result<Option<&'static str>> {
    let found = rustix::fs::statfs(directory)?;
    // The magic numbers have 32 bits; the field is wider in some places, and signed.
    Ok(kind_of_magic(found.f_type as u32))
}

/// See above; these systems tell the name of the type.
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
pub(crate) fn unsafe_for_wal(directory: &Path) -> io::Result<Option<&'static str>> {
    let found = rustix::fs::statfs(directory)?;
    let name: Vec<u8> = found.f_fstypename.iter().map(|&byte| byte as u8).take_while(|&b| b != 0).collect();
    Ok(kind_of_name(&name))
}

/// Elsewhere nobody is asked. SQLite itself still refuses a WAL where there is no shared memory at all.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd")))]
pub(crate) fn unsafe_for_wal(_directory: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// By the number that `statfs` gives (`linux/magic.h`, and the sources of those that are not in the kernel).
#[cfg(any(target_os = "linux", target_os = "android", test))]
fn kind_of_magic(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x0102_1997 => "9p",
        // Also sshfs, NTFS-3G and whatever else is a program that plays a file system.
        0x6573_5546 => "FUSE or virtiofs",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x00c3_6400 => "Ceph",
        0x564c => "NCP",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0xaad7_aaea => "PanFS",
        0x6163_6673 => "ACFS",
        0xbeef_dead => "StorNext",
        0x786f_4256 => "a VirtualBox shared folder",
        0xbacb_acbc => "a VMware shared folder",
        0x7c7c_6673 => "a Parallels shared folder",
        _ => return None,
    })
}

/// By the name that `statfs` gives.
#[cfg(any(target_vendor = "apple", target_os = "freebsd", test))]
fn kind_of_name(name: &[u8]) -> Option<&'static str> {
    Some(match name {
        b"nfs" | b"oldnfs" => "NFS",
        b"smbfs" | b"cifs" => "SMB",
        b"afpfs" => "AFP",
        b"webdav" | b"webdavfs" => "WebDAV",
        b"ftp" => "FTP",
        b"p9fs" | b"virtio9p" => "9p",
        b"virtiofs" | b"AppleVirtIOFS" => "virtiofs",
        b"afs" => "AFS",
        name if name.windows(4).any(|part| part == b"fuse") => "FUSE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_cross_a_border_are_known_by_number() {
        for (magic, kind) in [
            (0x6969, "NFS"),
            (0xff53_4d42, "SMB"),
            (0xfe53_4d42, "SMB"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "FUSE or virtiofs"),
            (0x00c3_6400, "Ceph"),
            (0x786f_4256, "a VirtualBox shared folder"),
        ] {
            assert_eq!(kind_of_magic(magic), Some(kind));
        }
    }

    #[test]
    fn file_systems_of_this_machine_are_fine() {
        // ext4, XFS, btrfs, ZFS, F2FS, bcachefs, tmpfs, overlayfs, vfat, exFAT, NTFS3.
        for magic in [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x2fc1_2fc1,
            0xf2f5_2010,
            0xca45_1a4e,
            0x0102_1994,
            0x794c_7630,
            0x4d44,
            0x2011_bab0,
            0x7366_746e,
        ] {
            assert_eq!(kind_of_magic(magic), None, "{magic:#x}");
        }
        for name in [&b"apfs"[..], b"hfs", b"ufs", b"zfs", b"msdosfs", b"tmpfs", b""] {
            assert_eq!(kind_of_name(name), None);
        }
    }

    #[test]
    fn file_systems_that_cross_a_border_are_known_by_name() {
        for (name, kind) in [
            (&b"nfs"[..], "NFS"),
            (b"smbfs", "SMB"),
            (b"webdav", "WebDAV"),
            (b"macfuse", "FUSE"),
            (b"osxfuse", "FUSE"),
            (b"fusefs.sshfs", "FUSE"),
        ] {
            assert_eq!(kind_of_name(name), Some(kind));
        }
    }

    #[test]
    fn a_directory_that_does_not_exist_is_an_error() {
        let asked = unsafe_for_wal(Path::new("/nowhere/at/all"));
        assert_eq!(
            asked.is_err(),
            cfg!(any(target_os = "linux", target_os = "android", target_vendor = "apple"))
        );
    }
}
