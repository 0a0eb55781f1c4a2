//! Random histories of one file against a naive model that knows, per sector, what may be found there.

use super::*;

const BLOCKS: u64 = 6;
const SECTORS: usize = BLOCKS as usize * 8;

/// Contents that a sector may have, each written by the operation of that number.
#[derive(Clone)]
struct Sector {
    /// A read finds one of these.
    visible: Vec<u8>,
    /// A power cut leaves one of these.
    left: Vec<u8>,
    /// Abandoned writes, which may have landed, or yet land, at any time.
    abandoned: Vec<u8>,
    /// No failure since the last write that succeeded: a sync makes it durable.
    sure: bool,
}

impl Sector {
    fn written(&mut self, number: u8, mode: WriteMode) {
        self.sure = true;
        self.visible = vec![number];
        if mode == WriteMode::Stable {
            self.left.clear();
        }
        self.left.push(number);
    }

    fn write_failed(&mut self, number: u8) {
        self.sure = false;
        self.visible.push(number);
        self.left.push(number);
    }

    fn synced(&mut self) {
        if self.sure {
            self.left.clone_from(&self.visible);
        }
    }

    fn sync_failed(&mut self) {
        self.sure = false;
        self.visible.clone_from(&self.left);
    }

    fn may_be_read(&self, byte: u8) -> bool {
        self.visible.contains(&byte) || self.abandoned.contains(&byte)
    }

    fn may_be_left(&self, byte: u8) -> bool {
        self.left.contains(&byte) || self.abandoned.contains(&byte)
    }
}

struct Model {
    sectors: Vec<Sector>,
}

impl Model {
    fn new() -> Model {
        let sector = Sector { visible: vec![0], left: vec![0], abandoned: Vec::new(), sure: true };
        Model { sectors: vec![sector; SECTORS] }
    }

    fn each(&mut self, block: u64, blocks: u64, change: impl FnMut(&mut Sector)) {
        self.sectors[block as usize * 8..(block + blocks) as usize * 8].iter_mut().for_each(change);
    }
}

/// One task writes, reads and syncs; each byte value is used once. Every 23rd operation is a write abandoned in flight.
async fn play(core: Core, file: File, model: Rc<RefCell<Model>>) {
    for number in 1..200u8 {
        let choice = core.random_u64();
        let block = choice % BLOCKS;
        let blocks = (1 + (choice >> 8) % 3).min(BLOCKS - block);
        let mode = if choice >> 40 & 3 == 0 { WriteMode::Stable } else { WriteMode::Volatile };
        let data = filled(&core, blocks as usize, number).await;
        if number % 23 == 0 {
            model.borrow_mut().each(block, blocks, |sector| sector.abandoned.push(number));
            let file = file.clone();
            let write = core.spawn(async move { file.write_at(data, block * BLOCK, mode).await });
            core.yield_now().await;
            write.cancel();
            continue;
        }
        match (choice >> 16) % 8 {
            0..=4 => {
                // Until it returns, a crash may find it anywhere.
                let before = model.borrow().sectors.clone();
                model.borrow_mut().each(block, blocks, |sector| sector.write_failed(number));
                let result = file.write_at(data, block * BLOCK, mode).await;
                if result.is_ok() {
                    let mut model = model.borrow_mut();
                    model.sectors = before;
                    model.each(block, blocks, |sector| sector.written(number, mode));
                }
            }
            5..=6 => {
                let found = first_bytes(&core, &file, block).await.unwrap();
                for (sector, byte) in model.borrow().sectors[block as usize * 8..].iter().zip(found) {
                    assert!(sector.may_be_read(byte), "operation {number} reads {byte}");
                }
            }
            _ => {
                let result = file.sync().await;
                let done = if result.is_ok() { Sector::synced } else { Sector::sync_failed };
                model.borrow_mut().each(0, BLOCKS, done);
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
        let rate = if seed % 2 == 0 { 0.0 } else { 0.1 };
        let faults = Faults { write_error: rate, sync_error: rate, ..Faults::default() };
        world.disk("disk0").set_faults(faults);
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
