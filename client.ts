#!/usr/bin/env -S npx ts-node
/**
 * An echo client (RFC 862): it connects to an echo server over TCP, sends a
 * message, reads until the whole of it has come back, and closes.
 *
 *     npx ts-node client.ts [host] [port] [message]
 *
 * It prints this, while server.ts runs in another terminal:
 *
 *     Connected to server: localhost on port 54321
 *     Sending some data...
 *     Response from server: Hello World!
 *     Connection closed.
 */
import { Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds that the server may be silent

const USAGE = `Usage: npx ts-node client.ts [host] [port] [message]

Sends a message to a TCP echo server and prints what comes back.

  host        IPv4 address, IPv6 address or name (looked up as IPv4) of the
              server (default: ${HOST})
  port        1 to 65535 (default: ${PORT})
  message     any text, sent as UTF-8 (default: ${MESSAGE})
  -h, --help  show this help`;

process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => { // EPIPE: our reader has gone, and we go on
  if (code !== 'EPIPE' && process.exitCode === undefined) fail(`cannot print (${code})`, 1);
});

const args = process.argv.slice(2);
const [host = HOST, port = String(PORT), message = MESSAGE, surplus] = args;
const options = args.filter((arg, index) => arg.startsWith('-') && index !== 2); // a message may start with a dash

if (options.includes('-h') || options.includes('--help')) console.log(USAGE);
else if (options[0] !== undefined) fail(`unknown option "${options[0]}"`, 2);
else if (surplus !== undefined) fail(`one argument too many: "${surplus}"`, 2);
else if (host === '') fail('host "" is neither a name nor an address', 2);
else if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
  fail(`port "${port}" is not a whole number from 1 to 65535`, 2);
else talk(host, Number(port), Buffer.from(message));

/**
 * Sends the bytes to host and port, prints what comes back, and closes. Fails
 * where the name is unknown (ENOTFOUND), where connect() does (see connect(2)),
 * where the connection breaks (ECONNRESET, EPIPE), where the server is silent
 * for too long, and where its reply is not what was sent (RFC 862).
 */
function talk(host: string, port: number, sent: Buffer): void {
  let pieces: Buffer[] = []; // received, and not printed yet
  let received = 0; // bytes in all
  let replied = false; // whether they are those that we sent

  const socket = new Socket();
  // Family 4 is AF_INET: a name is looked up as IPv4. An address is taken as it is.
  socket.connect({ host, port, family: 4 }); // socket(AF_INET, SOCK_STREAM), connect()

  socket.on('connect', () => {
    console.log(`Connected to server: ${host} on port ${port}`);
    socket.on('close', () => { // here, since a connection that never stood is not closed
      if (pieces.length > 0) printReply(); // what came before a fault
      console.log('Connection closed.');
    });
    console.log('Sending some data...');
    socket.write(sent); // sendall()
    if (sent.length === 0) finish(); // nothing was sent, so nothing comes back
  });

  // recv(): Node calls us each time that bytes have come. TCP is a stream, so the reply comes in any number of pieces.
  socket.on('data', (piece) => {
    pieces.push(piece);
    received += piece.length;
    if (received < sent.length) return; // more is to come
    if (received > sent.length) giveUp(`server sent more than the ${sent.length} bytes of the message`);
    else if (Buffer.concat(pieces).equals(sent)) finish();
    else giveUp('server sent back other bytes than those of the message');
  });
  socket.on('end', () => { // recv() returned nothing: the server's FIN
    if (received < sent.length) giveUp(`server closed after ${received} of ${sent.length} bytes`);
  });

  socket.setTimeout(TIMEOUT * 1000, () => { // settimeout()
    const { connecting, bytesRead } = socket;
    setImmediate(() => { // after what has come in the meantime: it may be this program that was stopped for so long
      if (socket.destroyed || connecting !== socket.connecting || bytesRead !== socket.bytesRead) return;
      if (!replied) giveUp(`nothing came from ${host} port ${port} for ${TIMEOUT} s`);
      socket.destroy(); // the server's FIN is all that is missing
    });
  });
  socket.on('error', (error: NodeJS.ErrnoException) => {
    if (replied) return; // how the server ends is no matter
    fail(`connection to ${host} port ${port} failed (${error.code})`, 1);
  });

  /** Prints what has been received since the last time. */
  function printReply(): void {
    console.log(`Response from server: ${visible(Buffer.concat(pieces).toString())}`);
    pieces = [];
  }

  /** Has the reply: prints it and sends our FIN. close() follows once the server's FIN has come too. */
  function finish(): void {
    replied = true;
    printReply();
    socket.end(); // shutdown()
  }

  /** Says what is wrong with the server, and waits for it no longer: close(). */
  function giveUp(fault: string): void {
    fail(fault, 1);
    socket.destroy();
  }
}

/** The text with its control characters, save tab and newline, as \x1b and the like: they could command a terminal. */
function visible(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, escape); // C0, DEL and C1
}

/** The one way to fail: says on stderr what failed, and sets the exit status, 1 at run time and 2 for wrong usage. */
function fail(what: string, status: 1 | 2): void {
  console.error(`client.ts: ${what}`);
  if (status === 2) console.error('Usage: npx ts-node client.ts [host] [port] [message]');
  process.exitCode = status;
}
