//! Small bodies in a pack: read alone, and restored through the pack.

use super::*;
use crate::checksum::crc32c;

/// Objects of odd lengths in one pack, some across strips.
const LENGTHS: [usize; 7] = [1, 4096, 5000, 100, 40_000, 65_536, 777];

fn write_pack(rig: &mut Rig) -> (Vec<u8>, Vec<PackedBody>) {
    let bytes = rig.bytes(LENGTHS.iter().sum::<usize>() + 999);
    let (bodies, own) = (Rc::clone(&rig.bodies), bytes.clone());
    let written = rig.world.run(async move {
        let mut writer = bodies.writer(Content::Pack, bodies.owner(0, b"")).contiguous();
        writer.expect(own.len() as u64);
        writer.write(&own).await.expect("there is room");
        writer.finish().await.expect("no device fails")
    });
    assert_eq!(written.body.segments.len(), 1, "a contiguous body is one segment");
    let pack = Rc::new(written.body.clone());
    // Its blocks are not lent again while the test reads them.
    let _ = written.leases.keep();
    let mut offset = 0;
    let packed = LENGTHS.map(|len| {
        let crcs = vec![crc32c(&bytes[offset..offset + len])];
        let body = PackedBody { pack: Rc::clone(&pack), offset: offset as u64, len: len as u32, crcs };
        offset += len;
        body
    });
    (bytes, packed.to_vec())
}

fn read_alone(rig: &mut Rig, body: &PackedBody, range: Range<u32>) -> Option<Vec<u8>> {
    let (bodies, body) = (Rc::clone(&rig.bodies), body.clone());
    let placement = rig.lessor.placement(body.pack.segments[0].extent);
    rig.world.run(async move {
        let bytes = bodies.read_packed(&placement, &body, range).await.expect("well described");
        bytes.map(|bytes| bytes.to_vec())
    })
}

fn read_through_the_pack(rig: &mut Rig, body: &PackedBody, range: Range<u32>) -> Vec<u8> {
    let (bodies, body) = (Rc::clone(&rig.bodies), body.clone());
    let (places, on_damage) = (rig.lessor.places(), rig.on_damage());
    rig.world.run(async move {
        let mut reader = bodies.packed_reader(&body, range, places, on_damage, None).expect("well described");
        let mut bytes = Vec::new();
        while let Some(slice) = reader.next().await {
            bytes.extend_from_slice(&slice.expect("one column is bad"));
        }
        bytes
    })
}

#[test]
fn each_is_read_alone_and_a_damaged_one_through_its_pack() {
    for (k, m, strip_len) in [(1, 1, 4096), (2, 1, 65_536), (3, 2, 8192)] {
        let mut rig = Rig::new(1, geometry(k, m, strip_len), 16 << 20);
        let (bytes, packed) = write_pack(&mut rig);
        let expected = |body: &PackedBody, range: &Range<u32>| {
            let start = body.offset as usize;
            bytes[start + range.start as usize..start + range.end as usize].to_vec()
        };
        let ranges = |body: &PackedBody| [0..body.len, body.len / 2..body.len, 0..1];
        for body in &packed {
            for range in ranges(body) {
                assert_eq!(read_alone(&mut rig, body, range.clone()), Some(expected(body, &range)));
            }
        }
        let extent = packed[0].pack.segments[0].extent;
        let column = rig.lessor.placement(extent).columns[0];
        let from = rig.place(column, 0);
        rig.disk(column.disk).overwrite("data", from, &vec![0; rig.geometry.data_slot_len as usize]);
        let mut damaged = 0;
        for body in &packed {
            for range in ranges(body) {
                let alone = read_alone(&mut rig, body, range.clone());
                assert!(alone.as_ref().is_none_or(|alone| *alone == expected(body, &range)));
                damaged += u32::from(alone.is_none());
                assert_eq!(read_through_the_pack(&mut rig, body, range.clone()), expected(body, &range));
            }
        }
        assert!(damaged > 0 && !rig.damages.borrow().is_empty(), "{k}+{m}");
    }
}
