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
const LATE = 900; // milliseconds: an answer that took so much longer than others came to a second SYN
const MOST = 4096; // probes in flight (sent, and not answered yet); each takes about 20 kB of memory
const FEWEST = 16; // probes in flight, however many packets are lost
const ROUNDS = 10; // how often a silent port is asked at most
const VERSION = '1.0.0'; // that of package.json
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]';

type Answer = 'open' | 'closed' | 'filtered';
type Reply = Answer | 'silent' | NodeJS.ErrnoException; // the error is a fault of this machine, and not an answer
type Options = { host: string; ports: number[]; timeout: number; openOnly: boolean };

process.on('uncaughtException', fail); // Node's own status for it is 1, which means here that no port is open
watchStdout();
scan(parseArguments(process.argv.slice(2))).catch(fail);

/** Prints the address of host and the answer of each port, in the order of ports. The timeout is in seconds. */
async function scan({ host, ports, timeout, openOnly }: Options): Promise<void> {
  process.exitCode = 2; // until all answers are known
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);

  const answers = new Map<number, Answer>();
  const printing = printInOrder(ports, answers, openOnly);
  if (process.stderr.isTTY && ports.length > 1) showProgress(answers, ports.length);

  const ask = (port: number) => probe(address, port, timeout);
  const record = (port: number, answer: Answer) => {
    answers.set(port, answer);
    printing.next();
  };
  await askInRounds(ports, startPace(timeout), ask, record);
  process.exitCode = [...answers.values()].includes('open') ? 0 : 1;
}

/** Prints the answers in the order of ports. Each next() prints on, up to the first port without an answer. */
function* printInOrder(ports: number[], answers: Map<number, Answer>, openOnly: boolean): Generator<void, void> {
  for (const port of ports) {
    while (!answers.has(port)) yield;
    const answer = answers.get(port);
    if (answer === 'open') console.log(`[OK] TCP port ${port} is open`);
    else if (!openOnly) console.log(`[FAILED] TCP port ${port} is ${answer}`);
  }
}

/**
 * Asks every port, and records each answer as soon as it is known. Silence means a firewall or a lost packet. So, if
 * packets are being lost, the silent ports are asked again, in rounds, until a round brings no answer at all.
 */
async function askInRounds(
  ports: number[], pace: Pace, ask: (port: number) => Promise<Reply>, record: (port: number, answer: Answer) => void,
): Promise<void> {
  let silent = ports;
  for (let round = 1; round <= ROUNDS && silent.length > 0; round++) {
    const asked = silent;
    silent = await askRound(asked, pace, ask, record);
    if (silent.length === asked.length) break;
  }
  for (const port of silent) record(port, 'filtered');
}

/**
 * Asks each port once, with as many probes in flight as the pace allows. Resolves to the silent ports that are worth
 * another round. If this machine is at fault, waits for the probes in flight, and rejects.
 */
async function askRound(
  ports: number[], pace: Pace, ask: (port: number) => Promise<Reply>, record: (port: number, answer: Answer) => void,
): Promise<number[]> {
  const left = [...ports].reverse(); // pop() takes the last one
  const silent: number[] = [];
  let inFlight = 0;
  let fault: Error | undefined;
  let wakeUp = () => {}; // ends the wait in the loop below

  const askOne = async (port: number) => {
    inFlight++;
    const sent = performance.now();
    const reply = await ask(port);
    inFlight--;
    adapt(pace, reply, performance.now() - sent);
    if (reply === 'silent' && pace.packetsLost) silent.push(port);
    else if (reply === 'silent') record(port, 'filtered');
    else if (typeof reply === 'string') record(port, reply);
    else if (reply.code === 'EMFILE' && inFlight > 0) {
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
      void askOne(port);
      await new Promise(setImmediate); // so that Node takes the replies that have come
    }
  }
  if (fault) throw fault;
  return silent;
}

/** How many probes may be in flight, and what we judge that by. */
interface Pace {
  limit: number;
  quickest: { open?: number; closed?: number }; // milliseconds; Windows asks a closed port three times
  second: number; // when the current second began, in milliseconds
  answers: number; // in the current second
  late: number; // those of them that came to a second SYN
  packetsLost: boolean; // whether any answer did
}

/** The pace at first. A timeout with no time for a second SYN can't show lost packets, so we suppose that some are. */
function startPace(timeout: number): Pace {
  return { limit: MOST, quickest: {}, second: performance.now(), answers: 0, late: 0, packetsLost: timeout <= 1 };
}

/**
 * Adapts the pace to a reply that took some milliseconds. An answer that is about a second late came to a second SYN:
 * the first one was lost, or the answer to it (RFC 6298, 2.1). Once a second, if more than a quarter of the answers
 * were late, we send more than the network or the host can take, and the limit is halved; if not, it is doubled.
 * (TCP halves at every loss, RFC 5681; here, a few packets lost by chance would then bring the scan to a crawl.)
 */
function adapt(pace: Pace, reply: Reply, took: number): void {
  if (reply === 'open' || reply === 'closed') { // not an ICMP error: many hosts send only a few of those a second
    const quickest = Math.min(pace.quickest[reply] ?? took, took);
    pace.quickest[reply] = quickest;
    pace.answers++;
    if (took > quickest + LATE) {
      pace.late++;
      pace.packetsLost = true;
    }
  }
  const now = performance.now();
  if (now < pace.second + 1000) return;
  const tooFast = pace.late > pace.answers / 4;
  if (tooFast && pace.limit <= FEWEST) pace.quickest = {}; // we can't be: it is the host that takes a second longer
  pace.limit = tooFast ? Math.max(pace.limit / 2, FEWEST) : Math.min(pace.limit * 2, MOST);
  Object.assign(pace, { second: now, answers: 0, late: 0 });
}

/**
 * What the port replies to a SYN within timeout, in seconds (RFC 9293, 3.5):
 *
 * - SYN-ACK: open, the connection is established.
 * - RST: closed. The ICMP error "port unreachable" looks the same to connect(2).
 * - another ICMP error: filtered, usually by a firewall.
 * - nothing: silent.
 */
function probe(address: string, port: number, timeout: number): Promise<Reply> {
  return new Promise((resolve) => {
    const socket = new Socket();
    const settle = (reply: Reply) => {
      socket.destroy(); // close()
      resolve(reply);
    };
    // What has arrived when time is up goes first, since this program may have been suspended for longer.
    socket.setTimeout(timeout * 1000, () => setImmediate(settle, 'silent')); // settimeout()
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()
    socket.on('connect', () => settle(isSelfConnection(socket) ? 'closed' : 'open'));

    // connect() has sent a SYN, and something other than a SYN-ACK came back.
    socket.on('connectionAttemptFailed', (_address, _port, _family, { code }: NodeJS.ErrnoException) => {
      if (code === 'ECONNREFUSED') settle('closed');
      else if (code === 'ECONNRESET' || code === 'EPIPE') settle('open'); // an RST, but after the handshake
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
  return socket.localPort === socket.remotePort && socket.localAddress === socket.remoteAddress;
}

/** The IPv4 address of a name; an address stays as it is. Rejects with the code of getaddrinfo(3) if there is none. */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    // In node:net only connect() looks names up. We leave as soon as it has the address: no SYN is sent to port 1.
    const socket = new Socket();
    socket.connect({ host, port: 1, family: 4 }); // family 4 is AF_INET
    socket.on('lookup', (error: NodeJS.ErrnoException | null, address) => {
      socket.destroy();
      if (error) reject(new Error(`cannot find an IPv4 address of ${host} (${error.code})`));
      else resolve(address);
    });
  });
}

/** Shows on the terminal how many ports have an answer. The lines that scan() prints are longer, and cover this one. */
function showProgress(answers: Map<number, Answer>, total: number): void {
  const erase = () => process.stderr.write('\r\x1b[K');
  setInterval(() => process.stderr.write(`\x1b[K${answers.size} of ${total} ports\r`), 100).unref();
  process.on('exit', erase);
  process.once('SIGINT', () => { // Ctrl-C
    erase();
    process.kill(process.pid, 'SIGINT'); // which now ends the program, as if we had not caught the first one
  });
}

/** Ends the scan if stdout takes no more: its reader is gone, as head(1) is after its lines, or a disk is full. */
function watchStdout(): void {
  process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => {
    if (code !== 'EPIPE') console.error(`portscanner.ts: cannot print the answers (${code})`);
    process.exit(2);
  });
  process.stderr.on('error', () => {}); // nobody is left to be told
}

/** The options of the command line. Throws if they are wrong; ends the program at --help and --version. */
function parseArguments(args: string[]): Options {
  const text = { type: 'string', requiresArg: true } as const; // as numbers, 1e3 and 0x50 would be ports
  const { host, port, timeout, open } = yargs(args.map((arg) => arg.replace(/^-([Hpt])(?=[^=])/, '-$1='))) // -p80
    .locale('en') // not the language of LANG
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
