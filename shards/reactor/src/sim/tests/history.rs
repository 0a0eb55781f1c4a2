//! Random histories of one file against a naive model that knows, per sector, what may be found there.

use super::*;

const BLOCKS: u64 = 6;
const SECTORS: usize = BLOCKS as usize * 8;

/// Contents that a sector may have, each written by the operation of that number.
#[derive(Clone)]
struct Sector {
    durable: u8,
    /// Un-synced contents, oldest first; those of writes in flight or failed are not yet ordered.
    shown: Vec<u8>,
    unsure: Vec<u8>,
}

impl Sector {
    fn may_be_read(&self, byte: u8) -> bool {
        byte == *self.shown.last().unwrap_or(&self.durable) || self.unsure.contains(&byte)
    }

    fn may_be_left(&self, byte: u8) -> bool {
        byte == self.durable || self.shown.contains(&byte) || self.unsure.contains(&byte)
    }
}

struct Model {
    sectors: Vec<Sector>,
}

impl Model {
    fn new() -> Model {
        Model { sectors: vec![Sector { durable: 0, shown: Vec::new(), unsure: Vec::new() }; SECTORS] }
    }

    fn of(&mut self, block: u64, blocks: u64) -> &mut [Sector] {
        &mut self.sectors[block as usize * 8..(block + blocks) as usize * 8]
    }
}

/// One task writes, reads and syncs; each byte value is used once. Every seventh write is abandoned in flight.
async fn play(core: Core, file: File, model: Rc<RefCell<Model>>) {
    for number in 1..200u8 {
        let choice = core.random_u64();
        let block = choice % BLOCKS;
        let blocks = (1 + (choice >> 8) % 3).min(BLOCKS - block);
        match (choice >> 16) % 8 {
            0..=4 => {
                let mode = if choice >> 40 & 3 == 0 { WriteMode::Stable } else { WriteMode::Volatile };
                let data = filled(&core, blocks as usize, number).await;
                model.borrow_mut().of(block, blocks).iter_mut().for_each(|sector| sector.unsure.push(number));
                let write = core.spawn({
                    let file = file.clone();
                    async move { file.write_at(data, block * BLOCK, mode).await }
                });
                if number % 7 == 0 {
                    core.yield_now().await;
                    write.cancel();
                    continue;
                }
                write.await.unwrap().unwrap();
                for sector in model.borrow_mut().of(block, blocks) {
                    // An abandoned write may land at any time, before this one or after it, so it stays unsure.
                    sector.unsure.retain(|&unsure| unsure != number);
                    if mode == WriteMode::Stable {
                        sector.shown.clear();
                        sector.durable = number;
                    } else {
                        sector.shown.push(number);
                    }
                }
            }
            5..=6 => {
                let found = first_bytes(&core, &file, block).await.unwrap();
                for (sector, byte) in model.borrow_mut().of(block, 1).iter().zip(found) {
                    assert!(sector.may_be_read(byte), "read {byte}");
                }
            }
            _ => {
                file.sync().await.unwrap();
                for sector in &mut model.borrow_mut().sectors {
                    sector.durable = sector.shown.pop().unwrap_or(sector.durable);
                    sector.shown.clear();
                }
            }
        }
    }
}

#[test]
fn crashes_leave_what_the_naive_model_allows() {
    for seed in 0..4 * SEEDS {
        let mut world = world(seed);
        let core = world.boot(2).remove(0);
        let file = world.run({
            let core = core.clone();
            async move { durable_file(&core, "a", BLOCKS).await }
        });
        let model = Rc::new(RefCell::new(Model::new()));
        let cut = 1 + Random::new(seed).below(1500);
        let done = world.run_events(cut, play(core, file, Rc::clone(&model)));
        let crash = if seed % 3 == 0 { Crash::Kill } else { Crash::PowerCut };
        world.crash(crash);
        world.run_until_idle();
        let found = world.disk("disk0").read("a", 0, SECTORS * 512);
        for (index, (sector, found)) in model.borrow().sectors.iter().zip(found.chunks(512)).enumerate() {
            assert!(found.iter().all(|byte| *byte == found[0]), "seed {seed}: sector {index} is torn");
            let allowed = match crash {
                Crash::PowerCut => sector.may_be_left(found[0]),
                Crash::Kill => sector.may_be_read(found[0]),
            };
            assert!(allowed, "seed {seed}: {crash:?} leaves {} in sector {index}, done {done:?}", found[0]);
        }
    }
}
