/** A network of two machines, for what loopback can't do: packets that are dropped or rejected. */
import { cannotRun, unshare } from './scripts';

/** The address of the other machine. */
export const TARGET = '192.0.2.2';

/** Starts a command in namespaces that end with it: its `ip netns` names and its iptables lock are its own. */
const ALONE = [...unshare('--net', '--mount', '--pid', '--fork', '--mount-proc', '--kill-child'), 'sh', '-ec'];

const SETUP = `
  mount -t tmpfs tmpfs /run
  ip netns add target
  echo '
    link set lo up
    link add scanner type veth peer name target netns target
    address add 192.0.2.1/24 dev scanner
    link set scanner up' | ip -batch -
  echo '
    address add ${TARGET}/24 dev target
    link set lo up
    link set target up' | ip -n target -batch -
  until ip link show scanner | grep -q 'state UP' && ip -n target link show target | grep -q 'state UP'; do :; done
  on_target() { ip netns exec target "$@"; }
`;

/**
 * The command line, run on a machine that has only the loopback interface and a link to a second machine, the target.
 * The setup is an sh script, in which on_target() runs a command there.
 */
export const inNetwork = (setup: string, commandLine: string[]) =>
  [...ALONE, `${SETUP}${setup}\nexec "$@"`, 'sh', ...commandLine];

/** A line of setup: an iptables rule on the target for packets to its ports, such as 80 or 8000:8100. */
export const rule = (ports: string, target: string) =>
  `on_target iptables -A INPUT -p tcp --dport ${ports} -j ${target}\n`;

/** Lines of setup: an iptables rule on the target that drops (or rejects) the first SYNs to each of the ports. */
export const dropFirst = (ports: string, count = 1, target = 'DROP') => `
  on_target iptables -A INPUT -p tcp --syn --dport ${ports} -m hashlimit --hashlimit-name syn${ports}-${count} \\
    --hashlimit-mode dstport --hashlimit-upto 1/hour --hashlimit-burst ${count} -j ${target}
`;

/** Lines of setup: rules on the target that let 100 packets with those flags pass, and then `rate` a second. */
export const limit = (chain: 'INPUT' | 'OUTPUT', flags: string, rate: number) => `
  on_target iptables -A ${chain} -p tcp --tcp-flags ${flags} -m limit --limit ${rate}/s --limit-burst 100 -j ACCEPT
  on_target iptables -A ${chain} -p tcp --tcp-flags ${flags} -j DROP
`;

/** Lines of setup: iptables rules on the target that lose packets at random, each way with the same probability. */
export const lossy = (probability: number) => ['INPUT', 'OUTPUT'].map((chain) =>
  `on_target iptables -A ${chain} -p tcp -m statistic --mode random --probability ${probability} -j DROP\n`).join('');

/** Lines of setup: the target doesn't reply for that many seconds, once a SYN to the port arrives. */
export const outage = (port: number, seconds: number) => `
  on_target iptables -A INPUT -p tcp --syn --dport ${port} -m recent --name out --rdest ! --rcheck \\
    -m recent --name out --rdest --set
  on_target iptables -A INPUT -p tcp -m recent --name out --rdest --rcheck --seconds ${seconds} -j DROP
`;

/** Lines of setup: after a burst, the target bans a source for some seconds if it sends more than `perSecond` SYNs. */
export const ban = (perSecond: number, burst: number, seconds = 3) => `
  on_target iptables -A INPUT -p tcp --syn -m recent --name ban --rcheck --seconds ${seconds} -j DROP
  on_target iptables -A INPUT -p tcp --syn -m hashlimit --hashlimit-name ban --hashlimit-mode srcip \\
    --hashlimit-above ${perSecond}/s --hashlimit-burst ${burst} -m recent --name ban --set -j DROP
`;

/** Lines of setup: a Node server on each of the ports, on all addresses. The handler is for its connections. */
export const listenAt = (ports: number[], where: 'here' | 'on target' = 'on target', handler = '') => `
  mkfifo /run/ready
  ${where === 'here' ? '' : 'on_target '}"${process.execPath}" -e '
    let left = ${ports.length};
    for (const port of [${ports.join()}]) {
      net.createServer(${handler}).listen(port, () => { if (--left === 0) fs.writeFileSync("/run/ready", ""); });
    }' &
  cat /run/ready
`;

/** A line of setup: the system can only choose port 54321, so a socket that connects to 54321 reaches itself. */
export const ONE_PORT = 'echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range\n';

/** For the `skip` of a test: why there can be no such network here, in words, or false if there can. */
export const noNetwork = () => cannotRun(...inNetwork(rule('9', 'DROP'), ['true']));
