//! Many chains at once: streams of any number and length dealt to the lanes of a kernel.
//!
//! All lanes take the same number of blocks at a time, the most that every one of them has in one place. A stream that
//! has none left gives its lane to the next that waits. When so few are left that their common run costs more than one
//! run for each, they go on one by one.

use crate::kernel::{Block, Kernel, LANES, LaneStates, State, advance_one};

/// A chain and the blocks that wait for it.
pub trait Source {
    fn state(&self) -> State;
    fn set_state(&mut self, state: State);
    /// The next blocks, as many as lie in one place; empty when there are no more.
    fn front(&self) -> &[Block];
    /// The first `count` blocks of the front have been taken.
    fn consume(&mut self, count: usize);
}

/// Advances every source to its end. Those that have most should come first: the last ones share their lanes with nobody.
pub fn advance_all<S: Source>(kernel: Kernel, sources: &mut [S]) {
    let mut states = LaneStates::new();
    // Which source each of the first `live` lanes has.
    let mut lanes = [0; LANES];
    let mut live = 0;
    let mut waiting = 0;
    loop {
        while live < LANES && waiting < sources.len() {
            if !sources[waiting].front().is_empty() {
                lanes[live] = waiting;
                states.set(live, sources[waiting].state());
                live += 1;
            }
            waiting += 1;
        }
        if live < kernel.lanes_min() {
            for (lane, &index) in lanes[..live].iter().enumerate() {
                sources[index].set_state(states.get(lane));
                advance_alone(&mut sources[index]);
            }
            if waiting == sources.len() {
                return;
            }
            live = 0;
            continue;
        }
        let count = lanes[..live].iter().map(|&index| sources[index].front().len()).min().unwrap_or(0);
        // Lanes without a source compute what the last one does, to no end.
        let data: [&[Block]; LANES] = std::array::from_fn(|lane| sources[lanes[lane.min(live - 1)]].front());
        kernel.advance(&mut states, &data, live, count);
        for lane in (0..live).rev() {
            let source = &mut sources[lanes[lane]];
            source.consume(count);
            if source.front().is_empty() {
                source.set_state(states.get(lane));
                live -= 1;
                lanes[lane] = lanes[live];
                states.set(lane, states.get(live));
            }
        }
    }
}

fn advance_alone<S: Source>(source: &mut S) {
    let mut state = source.state();
    loop {
        let front = source.front();
        let count = front.len();
        if count == 0 {
            break;
        }
        advance_one(&mut state, front);
        source.consume(count);
    }
    source.set_state(state);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::START;
    use proptest::prelude::*;

    struct Pieces {
        state: State,
        pieces: Vec<Vec<Block>>,
    }

    impl Source for Pieces {
        fn state(&self) -> State {
            self.state
        }
        fn set_state(&mut self, state: State) {
            self.state = state;
        }
        fn front(&self) -> &[Block] {
            self.pieces.first().map_or(&[], |piece| piece)
        }
        fn consume(&mut self, count: usize) {
            self.pieces[0].drain(..count);
            self.pieces.retain(|piece| !piece.is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any number of sources, in any pieces, on every kernel of this machine.
        #[test]
        fn as_if_each_were_alone(
            shapes in prop::collection::vec(prop::collection::vec(1usize..12, 0..5), 0..50),
        ) {
            for kernel in Kernel::available() {
                let mut seed = 0u8;
                let mut fill = || {
                    seed = seed.wrapping_mul(29).wrapping_add(17);
                    [seed; 64]
                };
                let mut sources: Vec<Pieces> = shapes
                    .iter()
                    .map(|lens| Pieces {
                        state: START,
                        pieces: lens.iter().map(|&len| (0..len).map(|_| fill()).collect()).collect(),
                    })
                    .collect();
                let expected: Vec<State> = sources
                    .iter()
                    .map(|source| {
                        let mut state = START;
                        source.pieces.iter().for_each(|piece| advance_one(&mut state, piece));
                        state
                    })
                    .collect();
                advance_all(kernel, &mut sources);
                let states: Vec<State> = sources.iter().map(|source| source.state).collect();
                prop_assert_eq!(states, expected, "{}", kernel.name());
            }
        }
    }
}
