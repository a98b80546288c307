//! Several NICs as one, and what becomes of transfers when some of them, or all, stop working.

use kvrail::{ErrorKind, Landed};

use super::*;

/// Long enough to be cut in mid-transfer: seconds on soft-RoCE.
const LONG: usize = 24 * MIB;

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn two_rails_carry_a_transfer_together() {
    let pair = Pair::new(2, LONG);
    fill(&pair.near, 1);
    // The first one to be connected may take all that there is.
    eventually("both rails are connected", || !packets_of_a_write(&pair).contains(&0));
    fill(&pair.near, 2);
    let packets = packets_of_a_write(&pair);
    // Of 4 KiB each.
    let tenth = (LONG / 4_096 / 10) as u64;
    assert!(packets.iter().all(|carried| *carried > tenth), "{packets:?}");
    assert_eq!(first_wrong(&pair.far, 0..LONG, 2), None);
    pair.stop();
}

/// What each of our NICs sends when everything is written.
fn packets_of_a_write(pair: &Pair) -> [u64; 2] {
    let before = OURS.map(sent);
    pair.transfer(pair.writing(0, LONG)).unwrap();
    let after = OURS.map(sent);
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn one_of_two_rails_is_cut_and_the_transfer_ends_on_the_other() {
    let pair = Pair::new(2, LONG);
    for (round, nic) in [(1, 0), (2, 3)] {
        fill(&pair.near, round);
        let cut = later(Duration::from_millis(250), move || Cut::new(nic));
        let outcome = pair.transfer(pair.writing(0, LONG)).unwrap();
        assert_eq!(outcome.receipt().landed(), Landed::Yes);
        assert_eq!(first_wrong(&pair.far, 0..LONG, round), None, "cut {nic}");
        drop(cut.join().unwrap());
        // The rail returns by itself once its rest is over.
        let nic = OURS[nic % 2];
        eventually("the rail comes back", || {
            let before = sent(nic);
            pair.transfer(pair.writing(0, 4 * MIB)).unwrap();
            sent(nic) > before + 200
        });
    }
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn reads_survive_cuts_too() {
    let pair = Pair::new(2, LONG);
    // Soft-RoCE ends one read in a thousand of these as if it had succeeded.
    for round in 1..=12 {
        fill(&pair.far, round);
        let nic = round % 4;
        let cut =
            later(Duration::from_millis(100 + 37 * round as u64 % 300), move || Cut::new(nic));
        pair.transfer(pair.reading(0, LONG)).unwrap();
        assert_eq!(first_wrong(&pair.near, 0..LONG, round), None, "cut {nic} in round {round}");
        drop(cut.join().unwrap());
        // So that its rail is in use again.
        std::thread::sleep(Duration::from_millis(500));
    }
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn with_no_rail_left_the_error_says_which_failed_with_what() {
    let pair = Pair::new(1, LONG);
    fill(&pair.near, 1);
    let cut = later(Duration::from_millis(100), || Cut::new(0));
    // Over a second of work, however quick the machine.
    let transfers: Vec<_> = (0..5).map(|_| pair.a.transfer(pair.writing(0, LONG))).collect();
    let failed = transfers.into_iter().map(run).find_map(Result::err).unwrap();
    let text = failed.error().to_string();
    assert_eq!(failed.error().kind(), ErrorKind::Lost, "{text}");
    for word in ["rxe0", "rxe2", pair.b.name()] {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    // On a busy machine soft-RoCE takes longer to give up than we wait for it.
    let is_said = ["retry counter exceeded", "no completion in time"];
    assert!(is_said.iter().any(|word| text.contains(word)), "{text}");
    assert_eq!(failed.receipt().landed(), Landed::Maybe);
    drop(cut.join().unwrap());
    eventually("the rail comes back", || pair.transfer(pair.writing(0, MIB)).is_ok());
    assert_eq!(first_wrong(&pair.far, 0..MIB, 1), None);
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_flap_of_half_a_second_ends_either_way_with_the_right_bytes() {
    let pair = Pair::new(1, 8 * MIB);
    for round in 1..=3 {
        fill(&pair.near, round);
        let flap = later(Duration::from_millis(60), || {
            let cut = Cut::new(0);
            std::thread::sleep(Duration::from_millis(500));
            drop(cut);
        });
        let ended = pair.transfer(pair.writing(0, 8 * MIB));
        flap.join().unwrap();
        if ended.is_ok() {
            assert_eq!(first_wrong(&pair.far, 0..8 * MIB, round), None);
        }
        drop(ended);
        eventually("the rail comes back", || pair.transfer(pair.writing(0, MIB)).is_ok());
    }
    pair.stop();
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn a_port_that_goes_down_is_left_alone_until_it_is_up() {
    let pair = Pair::new(2, LONG);
    fill(&pair.near, 1);
    let down = later(Duration::from_millis(250), || Down::new(1));
    pair.transfer(pair.writing(0, LONG)).unwrap();
    assert_eq!(first_wrong(&pair.far, 0..LONG, 1), None);
    let down = down.join().unwrap();
    let before = sent("rxe1");
    pair.transfer(pair.writing(0, 4 * MIB)).unwrap();
    assert!(sent("rxe1") < before + 50, "nothing is given to a port that is down");
    drop(down);
    eventually("the rail comes back", || {
        let before = sent("rxe1");
        pair.transfer(pair.writing(0, 4 * MIB)).unwrap();
        sent("rxe1") > before + 200
    });
    pair.stop();
}

/// A NIC that is down until this is dropped.
struct Down(usize);

impl Down {
    fn new(nic: usize) -> Self {
        sh(&format!("ip link set n{nic} down"));
        Self(nic)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        let Self(nic) = *self;
        sh(&format!("ip link set n{nic} up"));
        // The kernel has forgotten its route and neighbours: as xtask/vm/init sets them.
        sh(&format!("ip route replace 10.9.0.0/24 dev n{nic} table {}", 201 + nic));
        for other in (0..4).filter(|other| *other != nic) {
            let (ip, mac) = (other + 1, format!("02:09:00:00:00:{:02x}", other + 1));
            sh(&format!("ip neigh replace 10.9.0.{ip} lladdr {mac} dev n{nic} nud permanent"));
        }
    }
}
