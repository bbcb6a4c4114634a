//! Segments of the journal.

use lockstep_router::journal::parse;

const MAGIC: &[u8] = b"LSJRNL01";

/// What is read is what was written: encoded again, the records are the bytes they were read from. The same holds of
/// one record with a checksum that is right.
pub fn check(data: &[u8]) {
    check_segment(data);
    let mut framed = MAGIC.to_vec();
    framed.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    framed.extend(crc32fast::hash(data).to_le_bytes());
    framed.extend(data);
    check_segment(&framed);
}

fn check_segment(bytes: &[u8]) {
    let segment = parse(bytes);
    let Some(whole) = bytes.len().checked_sub(segment.torn_bytes) else {
        panic!("{} bytes of {} are torn", segment.torn_bytes, bytes.len());
    };
    if !bytes.starts_with(MAGIC) {
        assert!(segment.records.is_empty() && whole == 0);
        return;
    }
    let mut again = MAGIC.to_vec();
    for record in &segment.records {
        again
            .extend(record.encode().unwrap_or_else(|| panic!("{record:?} was read and cannot be written")));
    }
    assert!(again == bytes[..whole], "{:?} is written as other bytes", segment.records);
}
