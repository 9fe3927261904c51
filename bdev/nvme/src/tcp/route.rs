//! Which path an I/O takes: the best by ANA state, by the policy among equals.

use penstock_spec::nvme::log::ana::AnaState;
use serde::{Deserialize, Serialize};

/// Paths of one controller at most.
pub const PATHS_MAX: usize = 16;

/// How I/O is spread over paths that are equally good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// All by one path, as long as it serves.
    #[default]
    ActivePassive,
    /// By all of them.
    ActiveActive,
}

/// How the next of several active paths is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// In turn.
    #[default]
    RoundRobin,
    /// The one with the fewest commands.
    QueueDepth,
}

/// What `bdev_nvme_set_multipath_policy` and `bdev_nvme_set_preferred_path` say of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipathOptions {
    /// The policy.
    pub policy: Policy,
    /// Active-active: the selector.
    pub selector: Selector,
    /// I/Os in a row by one path, with the selector `round_robin`.
    pub rr_min_io: u32,
    /// The path that is taken while it is among the best; by its number.
    pub preferred: Option<u32>,
}

impl Default for MultipathOptions {
    fn default() -> Self {
        Self { policy: Policy::default(), selector: Selector::default(), rr_min_io: 1, preferred: None }
    }
}

/// What a path is worth for a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It serves, in this ANA state (optimized or non-optimized).
    Serves(AnaState),
    /// Not now, perhaps later: it is being connected, or in an ANA state that passes.
    Later,
    /// Never, or not before somebody does something.
    Never,
}

/// The paths that serve a namespace now, best class only; indexes into the owner's table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Route {
    best: [u8; PATHS_MAX],
    len: usize,
    next: usize,
    taken: u32,
    /// None serves, but one may later.
    pub(super) hope: bool,
}

impl Route {
    /// The route over paths with the numbers and worths given, in the order of the owner's table.
    pub(super) fn over(
        paths: impl Iterator<Item = (u32, Worth)> + Clone,
        options: &MultipathOptions,
    ) -> Self {
        let mut route = Self::default();
        for class in [AnaState::OPTIMIZED, AnaState::NON_OPTIMIZED] {
            for (index, (number, _)) in
                (0_u8..).zip(paths.clone()).filter(|(_, (_, worth))| *worth == Worth::Serves(class))
            {
                let Some(place) = route.best.get_mut(route.len) else { break };
                *place = index;
                if Some(number) == options.preferred {
                    route.best.swap(0, route.len);
                }
                route.len += 1;
            }
            if route.len > 0 {
                return route;
            }
        }
        route.hope = paths.clone().any(|(_, worth)| worth == Worth::Later);
        route
    }

    /// The path for the next I/O; `load` tells how many commands a path has.
    #[inline]
    pub(super) fn choose(
        &mut self,
        options: &MultipathOptions,
        load: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        let best = self.best.get(..self.len)?;
        if best.len() <= 1 || options.policy == Policy::ActivePassive {
            return best.first().map(|index| usize::from(*index));
        }
        if options.selector == Selector::QueueDepth {
            return best.iter().map(|index| usize::from(*index)).min_by_key(|index| load(*index));
        }
        if self.taken >= options.rr_min_io.max(1) {
            self.taken = 0;
            self.next = (self.next + 1) % best.len();
        }
        self.taken += 1;
        best.get(self.next).map(|index| usize::from(*index))
    }

    /// Whether the path at this index is one that I/O goes by now.
    pub(super) fn is_current(&self, index: usize, options: &MultipathOptions) -> bool {
        let count = if options.policy == Policy::ActivePassive { self.len.min(1) } else { self.len };
        self.best.iter().take(count).any(|best| usize::from(*best) == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIMIZED: Worth = Worth::Serves(AnaState::OPTIMIZED);
    const NON_OPTIMIZED: Worth = Worth::Serves(AnaState::NON_OPTIMIZED);

    fn route(worths: &[Worth], options: &MultipathOptions) -> Route {
        Route::over((10..).zip(worths.iter().copied()), options)
    }

    fn chosen(route: &mut Route, options: &MultipathOptions, count: usize) -> Vec<Option<usize>> {
        (0..count).map(|_| route.choose(options, |_| 0)).collect()
    }

    #[test]
    fn one_path_of_the_best_class_takes_all_unless_another_is_preferred() {
        let mut options = MultipathOptions::default();
        let worths = [NON_OPTIMIZED, OPTIMIZED, Worth::Later, OPTIMIZED];
        assert_eq!(chosen(&mut route(&worths, &options), &options, 3), [Some(1); 3]);
        options.preferred = Some(13);
        assert_eq!(chosen(&mut route(&worths, &options), &options, 3), [Some(3); 3]);
        options.preferred = Some(10);
        assert_eq!(chosen(&mut route(&worths, &options), &options, 1), [Some(1)], "class before preference");
    }

    #[test]
    fn active_paths_take_turns_of_the_length_asked_for() {
        let options =
            MultipathOptions { policy: Policy::ActiveActive, rr_min_io: 2, ..MultipathOptions::default() };
        let mut route = route(&[OPTIMIZED, NON_OPTIMIZED, OPTIMIZED], &options);
        let turns = [Some(0), Some(0), Some(2), Some(2), Some(0)];
        assert_eq!(chosen(&mut route, &options, 5), turns);
        assert!(route.is_current(2, &options) && !route.is_current(1, &options));
    }

    #[test]
    fn the_path_with_the_fewest_commands_is_taken_where_that_is_asked_for() {
        let options = MultipathOptions {
            policy: Policy::ActiveActive,
            selector: Selector::QueueDepth,
            ..MultipathOptions::default()
        };
        let mut route = route(&[NON_OPTIMIZED, NON_OPTIMIZED], &options);
        assert_eq!(route.choose(&options, |index| [5, 4][index]), Some(1));
        assert_eq!(route.choose(&options, |index| [3, 4][index]), Some(0));
    }

    #[test]
    fn without_a_path_there_is_hope_only_where_one_may_come() {
        let options = MultipathOptions::default();
        let mut waiting = route(&[Worth::Never, Worth::Later], &options);
        assert_eq!((waiting.choose(&options, |_| 0), waiting.hope), (None, true));
        assert!(!route(&[Worth::Never], &options).hope && !route(&[], &options).hope);
    }
}
