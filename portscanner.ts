#!/usr/bin/env -S npx ts-node
/**
 * A TCP port scanner: it tries to connect to ports of one host, and reports
 * whether each one is open.
 *
 *     npx ts-node portscanner.ts -H localhost -p 54321
 *
 * It prints this, or `[OK] TCP port 54321 is open` as the second line:
 *
 *     Connecting to 127.0.0.1...
 *     [FAILED] TCP port 54321 is closed
 *
 * A port that stays silent is filtered. The exit status is 0 if a port is
 * open, 1 if none is, and 2 if the scan failed.
 *
 * Left out on purpose: more than one host, UDP, and scans that send a SYN but
 * never connect, which need raw sockets and an administrator's rights.
 */
import { isIP, isIPv6, Socket } from 'node:net';
import yargs from 'yargs';

const TIMEOUT = 3; // seconds to wait for a port: enough for a second SYN, which the system sends after one
const LATE = 900; // milliseconds: an answer that took this much longer than the quickest must be to a second SYN
const MOST_IN_FLIGHT = 4096; // probes that are sent and not answered yet; each takes about 20 kB of memory
const FEWEST_IN_FLIGHT = 16; // even if most packets are lost
const EMPTY_ROUNDS = 2; // rounds in a row without an answer, until silent ports are taken for filtered
const MEAGER_ROUNDS = 10; // rounds in which fewer than one port in 20 answers: no host can make a scan endless
const VERSION = '1.0.0'; // that of package.json
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

type Answer = 'open' | 'closed' | 'filtered';
type Reply = Answer | 'silent';
type Ask = (port: number) => Promise<Reply | NodeJS.ErrnoException>; // an error is a fault of this machine
type Tell = (port: number, reply: Reply) => void;

process.on('uncaughtException', fail); // Node's own status for it is 1, which means here that no port is open
watchStdout();
scan(process.argv.slice(2)).catch(fail);

/** Prints the address of the host and the answer of each port, in the order given. */
async function scan(args: string[]): Promise<void> {
  process.exitCode = 2; // until all answers are known
  const { host, ports, timeout, openOnly } = parseArguments(args);
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);

  const replies = new Map<number, Reply>();
  const printing = printInOrder(ports, replies, openOnly);
  if (process.stderr.isTTY && ports.length > 1) showProgress(replies, ports.length);

  const ask: Ask = (port) => probe(address, port, timeout);
  const tell: Tell = (port, reply) => {
    replies.set(port, reply);
    printing.next();
  };
  await askInRounds(ports, timeout, ask, tell);
  process.exitCode = [...replies.values()].includes('open') ? 0 : 1;
}

/** Prints the answers in the order of ports. Each next() prints on, up to the first port without an answer. */
function* printInOrder(ports: number[], replies: Map<number, Reply>, openOnly: boolean): Generator<void, void> {
  for (const port of ports) {
    while ((replies.get(port) ?? 'silent') === 'silent') yield;
    const answer = replies.get(port);
    if (answer === 'open') console.log(`[OK] TCP port ${port} is open`);
    else if (!openOnly) console.log(`[FAILED] TCP port ${port} is ${answer}`);
  }
}

/**
 * Asks every port, and reports each answer as soon as it is known. Silence means a firewall or a lost packet. If
 * packets are being lost, silent ports are asked again in another round, until rounds bring no answer any more.
 */
async function askInRounds(ports: number[], timeout: number, ask: Ask, tell: Tell): Promise<void> {
  const pace: Pace = {
    limit: MOST_IN_FLIGHT, timeout: timeout * 1000, round: 1, quickest: {}, lastHeard: Infinity, since: 0, answers: 0,
    late: 0, packetsLost: false,
  };
  let silent = ports;
  for (let empty = 0, meager = 0; silent.length > 0 && meager < MEAGER_ROUNDS; pace.round++) {
    const asked = silent;
    silent = await askOnce(asked, pace, ask, tell);
    const answers = asked.length - silent.length;
    empty = answers === 0 ? empty + 1 : 0;
    meager += answers < asked.length / 20 ? 1 : 0;
    if (!pace.packetsLost && !isBlind(pace)) break; // nothing is lost: the silent ports are behind a firewall
    if (empty === (pace.packetsLost ? EMPTY_ROUNDS : 1)) break;
  }
  for (const port of silent) tell(port, 'filtered');
}

/**
 * Asks each port once, with as many probes in flight as the pace allows. Resolves to the ports whose silence may be due
 * to a lost packet. If this machine is at fault, waits for the probes in flight, and rejects.
 */
async function askOnce(ports: number[], pace: Pace, ask: Ask, tell: Tell): Promise<number[]> {
  const left = [...ports].reverse(); // pop() takes the last one
  const silent: number[] = [];
  let inFlight = 0;
  let fault: Error | undefined;
  let wakeUp = () => {}; // ends the wait in the loop below

  const askPort = async (port: number) => {
    inFlight++;
    const sent = performance.now();
    const reply = await ask(port);
    inFlight--;
    if (reply === 'open' || reply === 'closed') noteAnswer(pace, reply, sent);
    adaptLimit(pace);

    if (reply === 'silent' && (pace.packetsLost || isBlind(pace) || sent > pace.lastHeard)) {
      silent.push(port);
      tell(port, 'silent');
    } else if (reply === 'silent') {
      tell(port, 'filtered');
    } else if (typeof reply === 'string') {
      tell(port, reply);
    } else if (reply.code === 'EMFILE' && inFlight > 0 && !fault) {
      pace.limit = inFlight; // the system allows no more sockets than these
      left.push(port);
    } else {
      fault ??= reply;
      left.length = 0;
    }
    wakeUp();
  };

  while (left.length > 0 || inFlight > 0) {
    const port = inFlight < pace.limit ? left.pop() : undefined;
    if (port === undefined) {
      await new Promise<void>((resolve) => { wakeUp = resolve; }); // until a reply comes
    } else {
      void askPort(port);
      await new Promise(setImmediate); // so that Node takes the replies that have come
    }
  }
  if (fault) throw fault;
  return silent;
}

/** How many probes may be in flight, and what we judge that by. Times are in milliseconds. */
interface Pace {
  limit: number;
  timeout: number;
  round: number;
  quickest: { open?: number; closed?: number }; // of the answers; Windows asks a closed port three times
  lastHeard: number; // when the last of the ports that answered was asked: what was asked later may be in an outage
  since: number; // when we began to count answers
  answers: number;
  late: number; // how many of the answers were to a second SYN
  packetsLost: boolean; // whether there was a late answer at any time
}

/** Whether an answer to a second SYN, which the system sends after a second, would come after the time-out. */
function isBlind({ timeout, quickest }: Pace): boolean {
  return timeout < 1200 + Math.max(quickest.open ?? 0, quickest.closed ?? 0);
}

/**
 * Counts an answer to a probe that began at `sent`. If it is about a second late, it answers a second SYN: the first
 * one or the answer to it was lost (RFC 6298, 2.1). If the time-out leaves no room for one, our second round sends the
 * second SYN. ICMP errors don't count: many hosts send only a few of those a second.
 */
function noteAnswer(pace: Pace, answer: 'open' | 'closed', sent: number): void {
  const elapsed = performance.now() - sent;
  const quickest = Math.min(pace.quickest[answer] ?? elapsed, elapsed);
  pace.quickest[answer] = quickest;
  pace.lastHeard = pace.lastHeard === Infinity ? sent : Math.max(pace.lastHeard, sent);
  pace.answers++;
  if (elapsed > quickest + LATE || (pace.round > 1 && isBlind(pace))) {
    pace.late++;
    pace.packetsLost = true;
  }
}

/**
 * Once a second, halves the limit if more than a quarter of the answers were late, since we send more than the network
 * or the host can take; else doubles it. (TCP halves at every loss, RFC 5681. Here, a few packets lost by chance would
 * then bring the scan to a crawl.)
 */
function adaptLimit(pace: Pace): void {
  const now = performance.now();
  if (now < pace.since + Math.min(1000, pace.timeout)) return;
  const tooFast = pace.late > pace.answers / 4;
  if (tooFast && pace.limit <= FEWEST_IN_FLIGHT) pace.quickest = {}; // it is the host that is slow: measure anew
  pace.limit = tooFast ? Math.max(pace.limit / 2, FEWEST_IN_FLIGHT) : Math.min(pace.limit * 2, MOST_IN_FLIGHT);
  Object.assign(pace, { since: now, answers: 0, late: 0 });
}

/**
 * What the port replies to a SYN within timeout, in seconds (RFC 9293, 3.5):
 *
 * - SYN-ACK: open, the connection is established.
 * - RST: closed. The ICMP error "port unreachable" looks the same to connect(2).
 * - another ICMP error: filtered, usually by a firewall.
 * - nothing: silent.
 */
function probe(address: string, port: number, timeout: number): ReturnType<Ask> {
  return new Promise((resolve) => {
    const socket = new Socket();
    const settle = (reply: Reply | NodeJS.ErrnoException) => {
      socket.destroy(); // close()
      resolve(reply);
    };
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()
    // settimeout(), from the SYN on, which Node sends at its next tick. What has arrived when the time is up goes
    // first, since this program may have been suspended for longer.
    process.nextTick(() => socket.setTimeout(timeout * 1000, () => setImmediate(settle, 'silent')));
    socket.on('connect', () => settle(isSelfConnection(socket) ? 'closed' : 'open'));

    // connect() began, and failed later: usually, no SYN-ACK came back.
    socket.on('connectionAttemptFailed', (_address, _port, _family, { code }: NodeJS.ErrnoException) => {
      if (code === 'ECONNREFUSED') settle('closed');
      else if (code === 'ECONNRESET' || code === 'EPIPE') settle('open'); // an RST, but after the handshake
      else if (code === 'ETIMEDOUT') settle('silent'); // the system gave up before we did
      else if (code !== 'EADDRINUSE') settle('filtered'); // on Windows, that one is a fault, and 'error' follows
    });

    // socket() or connect() failed at once, and nothing was sent.
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EHOSTUNREACH') return settle('filtered'); // macOS remembers which neighbors were silent
      error.message = `cannot scan port ${port} of ${address} (${error.code})`;
      settle(error);
    });
  });
}

/**
 * Whether TCP connected the socket to itself. This can happen on one's own machine if nobody listens at the port and
 * the system picks this very port as the local one: the SYN meets itself (simultaneous open, RFC 9293, 3.5).
 */
function isSelfConnection(socket: Socket): boolean {
  const { localAddress, localPort, remoteAddress, remotePort } = socket;
  return remotePort !== undefined && remotePort === localPort && remoteAddress === localAddress;
}

/** The IPv4 address of a name; an address stays as it is. Rejects with the code of getaddrinfo(3) if there is none. */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    // The scripts share node:net alone, in which only connect() looks up names. No SYN is sent: we leave before that.
    const socket = new Socket();
    socket.connect({ host, port: 1, family: 4 }); // family 4 is AF_INET
    socket.on('lookup', (error: NodeJS.ErrnoException | null, address) => {
      socket.destroy();
      if (error) reject(new Error(`cannot find an IPv4 address of ${host} (${error.code})`));
      else resolve(address);
    });
  });
}

/** Shows on the terminal how many ports have been asked. The lines of the answers are longer, and cover this one. */
function showProgress(replies: Map<number, Reply>, total: number): void {
  const erase = () => process.stderr.write('\r\x1b[K');
  setInterval(() => process.stderr.write(`\x1b[K${replies.size} of ${total} ports\r`), 100).unref();
  process.on('exit', erase);
  process.once('SIGINT', () => { // Ctrl-C
    erase();
    process.kill(process.pid, 'SIGINT'); // which now ends the program, as if we had not caught the first one
  });
}

/** Ends the scan if stdout takes no more: its reader has left, as head(1) does after ten lines, or a disk is full. */
function watchStdout(): void {
  process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
    if (code !== 'EPIPE') console.error(`portscanner.ts: cannot print the answers (${code})`);
    process.exit(2);
  });
  process.stderr.on('error', () => {}); // nobody is left to be told
}

/** The options of the command line, the timeout in seconds. Throws if they are wrong; ends at --help and --version. */
function parseArguments(args: string[]): { host: string; ports: number[]; timeout: number; openOnly: boolean } {
  const detached = args.map((arg) => arg.replace(/^-([Hpt])(?=[^=])/, '-$1=')); // -p80 as -p=80
  const text = { type: 'string', requiresArg: true } as const; // as numbers, 1e3 and 0x50 would be ports
  const { host, port, timeout, open } = yargs(detached)
    .locale('en') // not the language of LANG
    .parserConfiguration({ 'dot-notation': false }) // or --open.x would be taken for --open
    .usage(USAGE)
    .version(VERSION)
    .option('host', { ...text, alias: 'H', demandOption: true, coerce: parseHost })
    .describe('host', 'IPv4 address, IPv6 address or name (looked up as IPv4)')
    .option('port', { ...text, alias: 'p', demandOption: true, coerce: parsePorts })
    .describe('port', 'TCP ports to scan: 54321, 22,80,443 or 8000-8100')
    .option('timeout', { ...text, alias: 't', default: TIMEOUT, coerce: parseTimeout })
    .describe('timeout', 'seconds to wait for each port, up to 3600')
    .option('open', { type: 'boolean', default: false, describe: 'print only the open ports' })
    .alias('help', 'h')
    .describe({ help: 'show this help', version: 'show the version' })
    .strictOptions()
    .check(({ _: unexpected }) => {
      if (unexpected.length > 0) throw new Error(`unexpected argument "${unexpected[0]}"; separate ports with commas`);
      if (args.some((arg) => /^--open=(?!true$|false$)/.test(arg))) throw new Error('--open takes no value');
      return true;
    })
    .fail((message) => { throw new Error(`${message}\n${USAGE}`); })
    .parseSync();
  return { host, ports: port, timeout, openOnly: open };
}

/** The value of --host. Throws if it is missing, given twice, or comes with brackets or a port. */
function parseHost(host: unknown): string {
  if (typeof host === 'string' && (isIPv6(host) || /^[^:[\]]+$/.test(host))) return host;
  throw new Error(`-H takes one name or address, without brackets or a port, not ${JSON.stringify(host)}`);
}

/** The ports of --port, each once, in the order given. Throws if one is not an integer from 1 to 65535. */
function parsePorts(list: unknown): number[] {
  if (typeof list !== 'string') throw new Error(`-p takes one list, such as 22,80, not ${JSON.stringify(list)}`);
  const ports = new Set<number>();
  for (const part of list.split(',')) {
    const range = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part);
    const first = Number(range?.[1]);
    const last = Number(range?.[2] ?? first);
    if (!(1 <= first && first <= last && last <= 65535)) {
      throw new Error(`${JSON.stringify(part)} is neither a port from 1 to 65535 nor a range such as 8000-8100`);
    }
    for (let port = first; port <= last; port++) ports.add(port);
  }
  return [...ports];
}

/** The value of --timeout in seconds. Throws if it is not a number in (0, 3600]. */
function parseTimeout(timeout: unknown): number {
  const seconds = /^\d*(\.\d+)?$/.test(String(timeout)) ? Number(timeout) : 0;
  if (seconds > 0 && seconds <= 3600) return seconds;
  throw new Error(`-t takes seconds above 0 and up to 3600, such as 0.5, not ${JSON.stringify(timeout)}`);
}

/** Reports a failure, and ends the program with status 2 as soon as stdout has taken what was printed. */
function fail(error: Error): void {
  console.error(`portscanner.ts: ${error.message}`);
  process.stdout.write('', () => process.exit(2));
}
