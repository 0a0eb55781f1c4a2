//! What things cost, where a figure is promised.

use super::*;
use crate::index::key::{Family, VersionOrder, end_of_prefix, object, start_of_prefix};

#[test]
fn a_delimiter_walk_costs_a_few_steps_per_prefix() {
    let (mut world, index, _) = index_in(1, IndexConfig { cache_len: 8 << 20, ..config() });
    world.run(async move {
        for number in 0..100_000_u32 {
            let name = format!("prefix {:03}/key {:04}", number % 100, number / 100);
            index.put(&object(1, name.as_bytes(), VersionOrder::NULL), &[1; 20]);
            // The last tenth stays in memory.
            if number % 10_000 == 9_999 && number < 90_000 {
                flush_all(&index).await;
                if number < 80_000 {
                    compact_all(&index).await;
                }
            }
        }
        assert!(index.stats().table_counts.iter().filter(|&&count| count > 0).count() >= 2);
        let before = index.stats().steps;
        let start = start_of_prefix(Family::Object, 1, b"");
        let end = end_of_prefix(Family::Object, 1, b"");
        let mut cursor = index.cursor(&start, Some(&end));
        let mut prefixes = 0;
        while let Some((key, _)) = cursor.next().await.expect("readable") {
            let name = &key[start.len()..];
            let slash = name.iter().position(|&byte| byte == b'/').expect("each name has one");
            let past = end_of_prefix(Family::Object, 1, &name[..=slash]);
            cursor.seek(&past);
            prefixes += 1;
        }
        let steps = index.stats().steps - before;
        assert_eq!(prefixes, 100);
        assert!(steps <= 2_000, "{steps} steps for 100 prefixes");
    });
}

#[test]
fn a_stored_object_takes_few_bytes_of_memory() {
    let (mut world, index, slots) = index_in(2, config());
    world.run(async move {
        for number in 0..30_000_u32 {
            let name = format!("photos/2026/11/{:08x}/image-{number}.jpeg", number.wrapping_mul(0x9e37_79b9));
            index.put(&object(1, name.as_bytes(), VersionOrder::NULL), &[3; 300]);
            if index.is_memtable_full() {
                flush_all(&index).await;
                compact_all(&index).await;
                for table in index.take_obsolete() {
                    assert!(table.is_unreferenced());
                    slots.discard(table.placement().id);
                }
            }
        }
        flush_all(&index).await;
        compact_all(&index).await;
        let stats = index.stats();
        let per_entry = stats.table_memory_len as f64 / stats.entry_count as f64;
        // Even with the shortest blocks.
        assert!(per_entry < 10.0, "{per_entry} bytes per entry, at most 40 are promised");
    });
}

#[test]
fn a_cold_lookup_reads_one_block_and_an_absent_key_none() {
    let (mut world, index, _) = index_in(3, IndexConfig { cache_len: 0, ..config() });
    world.run(async move {
        let key = |number: u32| object(1, format!("key {number:06}").as_bytes(), VersionOrder::NULL);
        for number in 0..6_000 {
            index.put(&key(2 * number), &[3; 100]);
            if number % 2_000 == 1_999 {
                flush_all(&index).await;
            }
        }
        let before = index.stats();
        for number in 0..200 {
            assert!(index.get(&key(60 * number)).await.expect("readable").is_some());
        }
        let present = index.stats().block_reads - before.block_reads;
        assert!(present <= 205, "{present} reads for 200 keys");
        for number in 0..200 {
            assert!(index.get(&key(60 * number + 1)).await.expect("readable").is_none());
            let mut versions = index.cursor_of_name(&key(60 * number + 1)[..9 + 10 + 2]);
            assert!(versions.next().await.expect("readable").is_none());
        }
        let absent = index.stats().block_reads - before.block_reads - present;
        assert!(absent <= 20, "{absent} reads for 400 lookups of absent keys");
    });
}
