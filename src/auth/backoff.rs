//! Who guesses waits.
//!
//! Wrong passwords are counted three ways, and each count has its own patience:
//!
//! - for a user **and** an address: five are free, then each costs a wait of 1 s, 2 s, … 5 min. While it lasts nothing of this
//!   user from this address is looked at, also not the right password: it would be found out by guessing on.
//!   A stranger elsewhere keeps nobody out by this.
//! - for an address, whoever is tried from there: twenty are free. A right password does not make this good, or one account
//!   would be a licence to try all others.
//! - for a user, from wherever: a hundred are free, and waits are short, as strangers with many addresses could keep a user out
//!   by it. It is not held against this machine, nor against addresses that this user has been right from.
//!
//! What nobody can guess (tokens, passwords that were made here) is not asked for here: it is right in spite of any wait.
//! All tables are bounded. Where one is full, the one whose last mistake is the oldest is forgiven; to bring that about takes
//! as many checked passwords as the table has places.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::address::Network;

/// Whose mistakes the wrong tokens are.
pub(super) const TOKENS: &str = "\0tokens";

const OF_A_PAIR: Patience = Patience { free: 5, longest: Duration::from_secs(300), places: 4096 };
const OF_AN_ADDRESS: Patience = Patience { free: 20, longest: Duration::from_secs(300), places: 4096 };
const OF_A_USER: Patience = Patience { free: 100, longest: Duration::from_secs(30), places: 1024 };
/// Mistakes are forgotten after so long without another.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// How many pairs of user and address that were right are remembered.
const KNOWN: usize = 1024;
/// Longer names are no users'.
const NAME: usize = 128;

/// All mistakes that are remembered.
pub(super) struct Backoff {
    state: Mutex<State>,
}

struct State {
    pairs: Mistakes<(String, Network)>,
    addresses: Mistakes<Network>,
    users: Mistakes<String>,
    known: HashMap<(String, Network), Instant>,
}

/// How many mistakes are free, and how long one waits at most.
#[derive(Clone, Copy)]
struct Patience {
    free: u32,
    longest: Duration,
    places: usize,
}

impl Backoff {
    pub fn new() -> Self {
        let state = State {
            pairs: Mistakes::new(OF_A_PAIR),
            addresses: Mistakes::new(OF_AN_ADDRESS),
            users: Mistakes::new(OF_A_USER),
            known: HashMap::new(),
        };
        Self { state: Mutex::new(state) }
    }

    /// How long this user has to wait at this address; none when it may try.
    pub fn wait(&self, user: &str, from: Network, now: Instant) -> Option<Duration> {
        let pair = pair(user, from);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = || state.users.wait(&pair.0, now);
        let is_known = from.is_this_machine() || state.known.contains_key(&pair);
        let waits =
            [state.pairs.wait(&pair, now), state.addresses.wait(&from, now), if is_known { None } else { of_user() }];
        waits.into_iter().flatten().max()
    }

    /// A wrong password; how long the next one has to wait.
    pub fn wrong(&self, user: &str, from: Network, now: Instant) -> Option<Duration> {
        let pair = pair(user, from);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pairs.add(pair.clone(), now);
        if user != TOKENS {
            // Nobody finds a token by trying; a forgotten one in somebody's script says nothing about its address.
            state.addresses.add(from, now);
            state.users.add(pair.0, now);
        }
        drop(state);
        self.wait(user, from, now)
    }

    /// The right password, which makes good what this user typed at this address.
    pub fn right(&self, user: &str, from: Network, now: Instant) {
        let pair = pair(user, from);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pairs.forget(&pair);
        if state.known.len() >= KNOWN && !state.known.contains_key(&pair) {
            let oldest = state.known.iter().min_by_key(|(_, since)| **since).map(|(pair, _)| pair.clone());
            oldest.map(|oldest| state.known.remove(&oldest));
        }
        state.known.insert(pair, now);
    }
}

fn pair(user: &str, from: Network) -> (String, Network) {
    (user.chars().take(NAME).collect(), from)
}

struct Mistakes<K> {
    patience: Patience,
    of: HashMap<K, Mistake>,
}

struct Mistake {
    number: u32,
    last: Instant,
}

impl<K: Hash + Eq + Clone> Mistakes<K> {
    fn new(patience: Patience) -> Self {
        Self { patience, of: HashMap::new() }
    }

    fn add(&mut self, key: K, now: Instant) {
        if self.of.len() >= self.patience.places && !self.of.contains_key(&key) {
            let oldest = self.of.iter().min_by_key(|(_, mistake)| mistake.last).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.of.remove(&oldest));
        }
        let mistake = self.of.entry(key).or_insert(Mistake { number: 0, last: now });
        if now.saturating_duration_since(mistake.last) >= FORGOTTEN {
            mistake.number = 0;
        }
        *mistake = Mistake { number: mistake.number.saturating_add(1), last: now };
    }

    fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let mistake = self.of.get(key)?;
        let beyond = mistake.number.checked_sub(self.patience.free)?;
        let wait = Duration::from_secs(1 << beyond.min(16)).min(self.patience.longest);
        let left = wait.saturating_sub(now.saturating_duration_since(mistake.last));
        (!left.is_zero()).then_some(left)
    }

    fn forget(&mut self, key: &K) {
        self.of.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Network {
        Network::of(text.parse().unwrap())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Guesses as fast as it may; how long each had to wait for the next.
    fn guess(backoff: &Backoff, user: &str, from: Network, times: usize, now: &mut Instant) -> Vec<u64> {
        (0..times)
            .map(|_| {
                assert_eq!(backoff.wait(user, from, *now), None, "it has waited");
                let wait = backoff.wrong(user, from, *now).unwrap_or_default();
                *now += wait;
                wait.as_secs()
            })
            .collect()
    }

    #[test]
    fn five_are_free_and_then_waits_double_up_to_five_minutes() {
        let (backoff, from, mut now) = (Backoff::new(), at("192.0.2.1"), Instant::now());
        let waits = guess(&backoff, "admin", from, 15, &mut now);
        assert_eq!(waits, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // Who asks meanwhile waits for what is left, and not longer than before.
        backoff.wrong("admin", from, now);
        assert_eq!(backoff.wait("admin", from, now + seconds(100)), Some(seconds(200)));
        assert_eq!(backoff.wait("admin", from, now + seconds(300)), None);
        // An hour without a mistake makes good what was.
        now += FORGOTTEN;
        assert_eq!(guess(&backoff, "admin", from, 5, &mut now), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn the_right_password_makes_good_what_its_user_typed_there() {
        let (backoff, from, mut now) = (Backoff::new(), at("192.0.2.1"), Instant::now());
        for _ in 0..3 {
            assert_eq!(guess(&backoff, "admin", from, 4, &mut now), [0; 4]);
            backoff.right("admin", from, now);
        }
    }

    #[test]
    fn strangers_keep_nobody_out_at_another_address() {
        let (backoff, now) = (Backoff::new(), Instant::now());
        backoff.right("admin", at("198.51.100.1"), now);
        for host in 0..=255 {
            for _ in 0..4 {
                backoff.wrong("admin", at(&format!("192.0.2.{host}")), now);
            }
        }
        for own in ["198.51.100.1", "127.0.0.1", "::1"] {
            assert_eq!(backoff.wait("admin", at(own), now), None, "{own}");
        }
        // So many addresses are one that guesses: elsewhere even a first try waits, and not for long.
        let elsewhere = backoff.wait("admin", at("203.0.113.1"), now).unwrap();
        assert!(elsewhere <= OF_A_USER.longest, "{elsewhere:?}");
        assert_eq!(backoff.wait("somebody", at("203.0.113.1"), now), None);
    }

    #[test]
    fn an_address_that_tries_many_users_waits_with_all_of_them_whatever_it_got_right() {
        let (backoff, from, mut now) = (Backoff::new(), at("2001:db8::1"), Instant::now());
        for user in 0..20 {
            guess(&backoff, &user.to_string(), from, 1, &mut now);
            backoff.right("own", from, now);
        }
        now -= seconds(1);
        assert!(backoff.wait("own", from, now).is_some());
        assert!(backoff.wait("anybody", at("2001:db8::2"), now).is_some(), "the same /64");
        assert_eq!(backoff.wait("anybody", at("2001:db8:0:1::1"), now), None);
    }

    #[test]
    fn wrong_tokens_hold_up_wrong_tokens_only() {
        let (backoff, from, now) = (Backoff::new(), at("192.0.2.1"), Instant::now());
        for _ in 0..200 {
            backoff.wrong(TOKENS, from, now);
        }
        assert!(backoff.wait(TOKENS, from, now).is_some());
        assert_eq!(backoff.wait("admin", from, now), None);
        assert_eq!(backoff.wait(TOKENS, at("192.0.2.2"), now), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgiven() {
        let (backoff, mut now) = (Backoff::new(), Instant::now());
        let host = |number: u32| Network::of(std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
        for _ in 0..6 {
            backoff.wrong("first", host(0), now);
        }
        for number in 1..10_000 {
            now += Duration::from_micros(1);
            backoff.wrong(&format!("{}{number}", "x".repeat(10_000)), host(number), now);
            backoff.right(&number.to_string(), host(number), now);
        }
        let state = backoff.state.lock().unwrap();
        assert_eq!((state.pairs.of.len(), state.addresses.of.len()), (OF_A_PAIR.places, OF_AN_ADDRESS.places));
        // All these names begin alike, and are too long for users.
        assert!(state.users.of.len() <= OF_A_USER.places && state.known.len() == KNOWN);
        assert!(state.pairs.of.keys().all(|(name, _)| name.len() <= NAME));
        drop(state);
        assert_eq!(backoff.wait("first", host(0), now), None);
    }
}
