//! Tars that `tar` makes, and tars that nobody should make.

use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use proptest::prelude::*;

use super::{Kind, TarEntries, TarEntry};
use crate::error::ImageError;

/// All entries with their data.
fn read(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, ImageError> {
    let mut entries = TarEntries::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = entries.next_entry()? {
        let mut data = Vec::new();
        entries.data().read_to_end(&mut data).map_err(ImageError::io("data"))?;
        all.push((entry, data));
    }
    Ok(all)
}

fn header(path: &str, size: u64, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(kind);
    header.set_cksum();
    header
}

/// A PAX header with these records, and a file after it.
fn with_pax(records: &[u8], path: &str, size: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes =
        header("pax", records.len() as u64, tar::EntryType::XHeader).as_bytes().to_vec();
    bytes.extend(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(header(path, size, tar::EntryType::Regular).as_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[test]
fn long_names_and_links_are_read() {
    let name = "d/".repeat(120) + "file";
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4755);
    header.set_mtime(7);
    builder.append_data(&mut header, &name, &b"abc"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "link", &name).unwrap();
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries.len(), 2);
    let (file, data) = &entries[0];
    assert_eq!((file.kind, file.mode, file.mtime), (Kind::File, 0o4755, (7, 0)));
    assert_eq!((file.path.as_slice(), data.as_slice()), (name.as_bytes(), &b"abc"[..]));
    assert_eq!((entries[1].0.kind, entries[1].0.link.as_slice()), (Kind::Symlink, name.as_bytes()));
}

#[test]
fn pax_overrides_the_header() {
    let records = [
        record(b"path", b"other/name"),
        record(b"size", b"5"),
        record(b"mtime", b"-1.25"),
        // A binary value: a line end is no end.
        record(b"SCHILY.xattr.user.a", b"x\ny\0z"),
        record(b"comment", b"nothing"),
    ]
    .concat();
    let entries = read(&with_pax(&records, "name", 0, b"hello")).unwrap();
    let (entry, data) = &entries[0];
    assert_eq!(entries.len(), 1);
    assert_eq!((entry.path.as_slice(), data.as_slice()), (&b"other/name"[..], &b"hello"[..]));
    assert_eq!(entry.mtime, (-2, 750_000_000));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"x\ny\0z".to_vec())]);
}

#[test]
fn malformed_headers_are_refused() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("length beyond the data", b"99 path=a\n".to_vec()),
        ("length of nothing", b"0 path=a\n".to_vec()),
        ("a signed length", b"+9 path=a\n".to_vec()),
        ("no value", b"5 ab\n".to_vec()),
        ("no line end", b"9 path=ab".to_vec()),
        ("a name with NUL", record(b"path", b"a\0b")),
        ("a negative size", record(b"size", b"-1")),
        ("a size beyond all", record(b"size", b"18446744073709551615")),
        ("a sparse file", record(b"GNU.sparse.major", b"1")),
    ];
    for (what, records) in cases {
        let result = read(&with_pax(&records, "a", 0, b""));
        assert!(matches!(result, Err(ImageError::Layer { .. })), "{what}: {result:?}");
    }
}

/// An extended header is not read into memory whatever it claims.
#[test]
fn a_huge_extended_header_is_refused_before_it_is_read() {
    for kind in
        [tar::EntryType::XHeader, tar::EntryType::GNULongName, tar::EntryType::XGlobalHeader]
    {
        let bytes = header("x", 1 << 32, kind).as_bytes().to_vec();
        let endless = bytes.chain(std::io::repeat(b'a'));
        let error = TarEntries::new(endless).next_entry().unwrap_err().to_string();
        assert!(error.contains("extended header"), "{error}");
    }
}

#[test]
fn what_is_cut_off_is_no_end() {
    let whole = with_pax(&record(b"path", b"p"), "a", 600, &[7; 600]);
    let end = whole.len() - 1024;
    assert_eq!(read(&whole).unwrap().len(), 1);
    assert_eq!(read(&whole[..end]).unwrap().len(), 1, "without the zero blocks");
    for cut in [100, 512, 600, 1024, 1100, 1536, 1600, end - 1] {
        assert!(read(&whole[..cut]).is_err(), "{cut}");
    }
    assert!(read(b"this is no tar, but longer than nothing").is_err());
    let mut wrong = whole;
    wrong[1024 + 150] ^= 1;
    assert!(read(&wrong).unwrap_err().to_string().contains("checksum"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the `tar` crate writes is read back.
    #[test]
    fn written_tars_are_read(files in prop::collection::vec(
        ("[a-z]{1,120}(/[a-zA-Z0-9 .-]{1,90}){0,3}x", prop::collection::vec(any::<u8>(), 0..2000)), 0..8,
    )) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, name, data.as_slice()).unwrap();
        }
        let entries = read(&builder.into_inner().unwrap()).unwrap();
        let seen: Vec<_> =
            entries.into_iter().map(|(entry, data)| (without_dots(&entry.path), data)).collect();
        let expected: Vec<_> =
            files.into_iter().map(|(name, data)| (without_dots(name.as_bytes()), data)).collect();
        prop_assert_eq!(seen, expected);
    }

    /// Bytes of any kind never make it panic, and never more than is there.
    #[test]
    fn noise_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), flips in prop::collection::vec((0..2048usize, any::<u8>()), 0..20)) {
        let _ = read(&bytes);
        bytes = with_pax(&record(b"path", b"abc"), "x", 20, &bytes[..bytes.len().min(20)]);
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(entries) = read(&bytes) {
            prop_assert!(entries.iter().map(|(_, data)| data.len()).sum::<usize>() <= bytes.len());
        }
    }
}

/// The crate normalises `.` away when it writes, but only in names that fit the header.
fn without_dots(name: &[u8]) -> Vec<u8> {
    let path: std::path::PathBuf =
        std::path::Path::new(std::ffi::OsStr::from_bytes(name)).components().collect();
    path.into_os_string().into_vec()
}
